// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <string>

#include "error.h"

namespace dwdp {

inline void RequirePages(const std::string& what, std::size_t num_bytes, std::size_t offset,
                         std::size_t granularity) {
  Require(num_bytes > 0 && num_bytes % granularity == 0 && offset % granularity == 0,
          "expected " + what + " of whole pages of " + std::to_string(granularity) +
              " bytes at a page's offset, got " + std::to_string(num_bytes) + " bytes at " +
              std::to_string(offset));
}

inline void RequireInside(const std::string& what, std::size_t offset, std::size_t num_bytes,
                          std::size_t room) {
  Require(offset <= room && num_bytes <= room - offset,
          what + ": expected a range inside " + std::to_string(room) + " bytes, got " +
              std::to_string(num_bytes) + " bytes at " + std::to_string(offset));
}

}  // namespace dwdp
