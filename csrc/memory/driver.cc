// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "memory/driver.h"

#include <algorithm>

namespace dwdp {

void MemoryDriver::Warn(const std::string& warning) {
  const std::lock_guard lock(warning_);
  if (warning.empty() || std::ranges::find(warnings_, warning) != warnings_.end()) return;
  warnings_.push_back(warning);
}

std::vector<std::string> MemoryDriver::warnings() const {
  const std::lock_guard lock(warning_);
  return warnings_;
}

}  // namespace dwdp
