// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>

namespace dwdp {

// The kernel or the GPU's driver refused a call, or a caller's arguments are invalid. The message
// says what was expected, what came instead, and what to do.
class DriverError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// This process, its host or its GPU has run out of memory, addresses, mappings or descriptors. It
// is no fault of the peer whose memory was being mapped.
class OutOfResources : public DriverError {
 public:
  using DriverError::DriverError;
};

// Returns advice for those of the kernel's errors that a user can fix, else an empty string.
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
  const std::string message = call + " failed: " + std::strerror(error) + Advice(error);
  if (error == ENOMEM || error == EMFILE || error == ENFILE) throw OutOfResources(message);
  throw DriverError(message);
}

inline void Require(bool holds, const std::string& message) {
  if (!holds) throw DriverError(message);
}

}  // namespace dwdp
