// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "host_allocation.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "error.h"

namespace dwdp {
namespace {

constexpr int kMadvCollapse = 25;         // Linux 6.1
constexpr unsigned kMfdNoexecSeal = 0x8;  // Linux 6.3
constexpr int kMpolPreferred = 1;
constexpr int kSealAttempts = 50;

UniqueFd CreateFile(const std::string& name) {
  const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  int fd = ::memfd_create(name.c_str(), flags | kMfdNoexecSeal);
  if (fd < 0 && errno == EINVAL) fd = ::memfd_create(name.c_str(), flags);
  if (fd < 0) ThrowErrno("memfd_create");
  return UniqueFd(fd);
}

void Resize(int fd, std::size_t num_bytes) {
  if (::ftruncate(fd, static_cast<off_t>(num_bytes)) != 0) ThrowErrno("ftruncate of a memory file");
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) ThrowErrno("sealing a size");
}

// A pin (direct I/O, say) holds a page for a moment: EBUSY then passes.
bool AddWriteSeal(int fd) {
  for (int attempt = 0; attempt < kSealAttempts; ++attempt) {
    if (::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0) return true;
    if (errno != EBUSY) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

UniqueFd ReopenReadOnly(int fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  UniqueFd reopened(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (reopened.get() < 0) ThrowErrno("open " + path);
  return reopened;
}

// The owner's policy rules for every process that maps the file.
void PreferNode(void* address, std::size_t num_bytes, int node, std::string* warning) {
  const unsigned long mask = 1UL << node;
  if (::syscall(SYS_mbind, address, num_bytes, kMpolPreferred, &mask, 8 * sizeof(mask), 0) != 0) {
    *warning = std::string("expert memory is not bound to NUMA node ") + std::to_string(node) +
               ": mbind: " + std::strerror(errno);
  }
}

void CheckSize(int fd, std::size_t expected) {
  struct stat status{};
  if (::fstat(fd, &status) != 0) ThrowErrno("fstat of a received descriptor");
  Require(S_ISREG(status.st_mode),
          "expected a memory file from the peer, got another kind of file");
  Require(static_cast<std::size_t>(status.st_size) == expected,
          "expected a memory file of " + std::to_string(expected) + " bytes from the peer, got " +
              std::to_string(status.st_size) +
              "; start every rank with the same model and options");
}

bool CheckSeals(int fd, bool require_write_seal) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  Require(seals >= 0, "expected a sealed memory file from the peer, got one without seals");
  const int size_seals = F_SEAL_SHRINK | F_SEAL_GROW;
  const bool is_write_sealed = (seals & F_SEAL_WRITE) != 0;
  Require((seals & size_seals) == size_seals && (is_write_sealed || !require_write_seal),
          "expected a memory file sealed against shrinking, growing and writing, got seals " +
              std::to_string(seals) + "; the peer must seal its experts before it shares them");
  return is_write_sealed;
}

}  // namespace

std::size_t LeadingHole(std::size_t num_bytes, std::size_t view_offset) {
  return num_bytes < kHugePageBytes ? 0 : view_offset % kHugePageBytes;
}

HostAllocation::HostAllocation(UniqueFd fd, std::size_t num_bytes, std::size_t hole,
                               bool huge_pages)
    : fd_(std::move(fd)), num_bytes_(num_bytes), hole_(hole), huge_pages_(huge_pages) {}

HostAllocation::~HostAllocation() { UnmapStaging(); }

std::unique_ptr<HostAllocation> HostAllocation::Create(std::size_t num_bytes,
                                                       std::size_t view_offset,
                                                       const HostOptions& options,
                                                       std::string* warning) {
  const std::size_t hole = LeadingHole(num_bytes, view_offset);
  std::unique_ptr<HostAllocation> made(
      new HostAllocation(CreateFile(options.name), num_bytes, hole, options.huge_pages));
  Resize(made->fd(), hole + num_bytes);
  made->MapStaging(options.numa_node, warning);
  return made;
}

std::unique_ptr<HostAllocation> HostAllocation::Import(UniqueFd fd, std::size_t num_bytes,
                                                       std::size_t view_offset,
                                                       const HostOptions& options) {
  const std::size_t hole = LeadingHole(num_bytes, view_offset);
  CheckSize(fd.get(), hole + num_bytes);
  const bool is_write_sealed = CheckSeals(fd.get(), options.require_write_seal);
  std::unique_ptr<HostAllocation> made(new HostAllocation(std::move(fd), num_bytes, hole, false));
  made->is_write_sealed_ = is_write_sealed;
  return made;
}

// The whole file is mapped at a 2 MiB boundary, so that it can be collapsed into huge pages;
// the leading hole is never touched.
void HostAllocation::MapStaging(int numa_node, std::string* warning) {
  const std::size_t mapped = hole_ + num_bytes_;
  const std::size_t room = mapped + kHugePageBytes;
  void* base = ::mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) ThrowErrno("mmap of a staging range");
  const auto start = reinterpret_cast<std::uintptr_t>(base);
  const std::uintptr_t aligned = (start + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  if (aligned > start) ::munmap(base, aligned - start);
  const std::size_t tail = start + room - (aligned + mapped);
  if (tail > 0) ::munmap(reinterpret_cast<void*>(aligned + mapped), tail);
  void* mapping = ::mmap(reinterpret_cast<void*>(aligned), mapped, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_FIXED, fd_.get(), 0);
  if (mapping == MAP_FAILED) ThrowErrno("mmap of a memory file");
  staging_base_ = static_cast<std::byte*>(mapping);
  staging_ = staging_base_ + hole_;
  ::madvise(staging_base_, mapped, MADV_DONTDUMP);
  if (numa_node >= 0) PreferNode(staging_base_, mapped, numa_node, warning);
}

void HostAllocation::UnmapStaging() {
  if (staging_base_ != nullptr) ::munmap(staging_base_, hole_ + num_bytes_);
  staging_base_ = staging_ = nullptr;
}

void HostAllocation::Seal() {
  if (huge_pages_ && num_bytes_ >= kHugePageBytes) {
    // Only whole huge pages inside the block: collapsing the hole would allocate it.
    const std::size_t first = (hole_ + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
    const std::size_t last = (hole_ + num_bytes_) / kHugePageBytes * kHugePageBytes;
    if (first < last) ::madvise(staging_base_ + first, last - first, kMadvCollapse);
  }
  UnmapStaging();
  is_write_sealed_ = AddWriteSeal(fd_.get());
  ::fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_SEAL);
  fd_ = ReopenReadOnly(fd_.get());
}

UniqueFd HostAllocation::Export() const {
  UniqueFd copy(::fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0));
  if (copy.get() < 0) ThrowErrno("duplicating a descriptor");
  return copy;
}

}  // namespace dwdp
