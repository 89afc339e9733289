// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>

namespace dwdp {

// The driver refused, or was asked for what can't be. The message says what was expected, what
// came, and what to do.
class DriverError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What to do about the errors of the kernel that a user can mend.
inline std::string Advice(int error) {
  if (error == EMFILE) return "; raise the process's descriptor limit (ulimit -n)";
  if (error == ENFILE) return "; raise the host's descriptor limit (sysctl fs.file-max)";
  if (error == ENOMEM) {
    return "; raise the number of mappings a process may hold (sysctl -w vm.max_map_count=262144) "
           "or free memory";
  }
  return "";
}

[[noreturn]] inline void ThrowErrno(const std::string& call) {
  const int error = errno;
  throw DriverError(call + " failed: " + std::strerror(error) + Advice(error));
}

inline void Require(bool holds, const std::string& message) {
  if (!holds) throw DriverError(message);
}

}  // namespace dwdp
