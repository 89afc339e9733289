// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "host/memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "base/error.h"

namespace dwdp {
namespace {

constexpr unsigned kMfdNoexecSeal = 0x8;  // Linux 6.3
constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW;
constexpr int kSealAttempts = 50;

UniqueFd NewMemoryFile(const std::string& name) {
  const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  UniqueFd fd(::memfd_create(name.c_str(), flags | kMfdNoexecSeal));
  if (fd.get() < 0 && errno == EINVAL) fd = UniqueFd(::memfd_create(name.c_str(), flags));
  if (fd.get() < 0) ThrowErrno("memfd_create of " + name);
  return fd;
}

// Tries again on EBUSY, which means that a page is pinned for a moment, for example by direct I/O.
bool AddWriteSeal(int fd) {
  for (int attempt = 0; attempt < kSealAttempts; ++attempt) {
    if (::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0) return true;
    if (errno != EBUSY) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

void CheckSize(int fd, std::size_t expected) {
  struct stat status{};
  if (::fstat(fd, &status) != 0) ThrowErrno("fstat of a received descriptor");
  Require(S_ISREG(status.st_mode),
          "expected a memory file from the peer, got another kind of file (mode " +
              std::to_string(status.st_mode) + "); check that all ranks run the same version");
  Require(static_cast<std::size_t>(status.st_size) == expected,
          "expected a memory file of " + std::to_string(expected) + " bytes from the peer, got " +
              std::to_string(status.st_size) +
              "; start every rank with the same model and options");
}

std::string Listed(int seals) {
  std::string names;
  for (const auto& [seal, name] :
       {std::pair{F_SEAL_SHRINK, " shrink"}, {F_SEAL_GROW, " grow"}, {F_SEAL_WRITE, " write"}}) {
    if ((seals & seal) != 0) names += name;
  }
  return names.empty() ? " none" : names;
}

// Throws DriverError unless the file has the size seals and, if `require_write_seal`, the write
// seal; a file that isn't a memory file has none. Returns whether it is sealed against writes.
bool CheckSeals(int fd, bool require_write_seal) {
  const int seals = std::max(::fcntl(fd, F_GET_SEALS), 0);
  const int required = kSizeSeals | (require_write_seal ? F_SEAL_WRITE : 0);
  Require((seals & required) == required,
          "expected a memory file with the seals" + Listed(required) + " from the peer, got" +
              Listed(seals) + "; the peer must seal its experts before it shares them");
  return (seals & F_SEAL_WRITE) != 0;
}

}  // namespace

UniqueFd CreateMemoryFile(const std::string& name, std::size_t num_bytes) {
  UniqueFd fd = NewMemoryFile(name);
  if (::ftruncate(fd.get(), static_cast<off_t>(num_bytes)) != 0) {
    ThrowErrno("ftruncate of a memory file to " + std::to_string(num_bytes) + " bytes");
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, kSizeSeals) != 0) ThrowErrno("sealing a file's size");
  return fd;
}

bool SealContents(int fd) {
  const bool is_write_sealed = AddWriteSeal(fd);
  ::fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL);
  return is_write_sealed;
}

UniqueFd ReopenReadOnly(int fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  UniqueFd reopened(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (reopened.get() < 0) ThrowErrno("open of " + path);
  return reopened;
}

ReceivedFile AcceptMemoryFile(UniqueFd fd, std::size_t num_bytes, bool require_write_seal) {
  CheckSize(fd.get(), num_bytes);
  const bool is_write_sealed = CheckSeals(fd.get(), require_write_seal);
  const bool is_read_only = (::fcntl(fd.get(), F_GETFL) & O_ACCMODE) == O_RDONLY;
  return {is_read_only ? std::move(fd) : ReopenReadOnly(fd.get()), is_write_sealed};
}

}  // namespace dwdp
