// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <cstddef>
#include <string>

#include "base/error.h"

namespace dwdp {

// The largest size that is accepted. No address space is larger, and two such sizes can be added
// without overflow.
inline constexpr std::size_t kMaxBytes = std::size_t{1} << 56;

inline void RequirePages(const std::string& what, std::size_t num_bytes, std::size_t offset,
                         std::size_t granularity) {
  Require(num_bytes > 0, "expected " + what + " of at least one page of " +
                             std::to_string(granularity) + " bytes, got none; leave it out");
  Require(num_bytes % granularity == 0 && offset % granularity == 0,
          "expected " + what + " of whole pages of " + std::to_string(granularity) +
              " bytes at a page's offset, got " + std::to_string(num_bytes) + " bytes at offset " +
              std::to_string(offset) + "; round to the driver's granularity");
  Require(num_bytes <= kMaxBytes && offset <= kMaxBytes,
          "expected " + what + " that fits into memory, got " + std::to_string(num_bytes) +
              " bytes at offset " + std::to_string(offset) + "; check the sizes");
}

inline void RequireInside(const std::string& what, std::size_t offset, std::size_t num_bytes,
                          std::size_t room) {
  Require(num_bytes > 0, what + ": expected at least one byte, got none; leave it out");
  Require(offset <= room && num_bytes <= room - offset,
          what + ": expected a range inside " + std::to_string(room) + " bytes, got " +
              std::to_string(num_bytes) + " bytes at offset " + std::to_string(offset) +
              "; check both");
}

}  // namespace dwdp
