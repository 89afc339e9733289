// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "host/allocation.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <vector>

#include "base/error.h"
#include "host/memory_file.h"

namespace dwdp {
namespace {

constexpr int kMadvCollapse = 25;  // Linux 6.1
constexpr int kMpolPreferred = 1;

// Asks for the file's pages from NUMA node `node`. Returns a warning if the kernel refuses, else an
// empty string. The policy belongs to the file: set before the first access, it holds for every
// process. The node is preferred, not enforced, because a full node must not get the owner killed.
std::string PreferNode(void* address, std::size_t num_bytes, int node) {
  constexpr int kBits = CHAR_BIT * sizeof(unsigned long);
  std::vector<unsigned long> mask(node / kBits + 1);
  mask.back() = 1UL << (node % kBits);
  const std::size_t num_bits = mask.size() * kBits + 1;  // the kernel reads one bit less
  if (::syscall(SYS_mbind, address, num_bytes, kMpolPreferred, mask.data(), num_bits, 0) == 0) {
    return "";
  }
  return "expected expert memory on NUMA node " + std::to_string(node) +
         ", got any node: mbind failed: " + std::strerror(errno) +
         "; check the node's number, or give the container CAP_SYS_NICE";
}

}  // namespace

std::size_t LeadingHole(std::size_t num_bytes, std::size_t view_offset) {
  return num_bytes < kHugePageBytes ? 0 : view_offset % kHugePageBytes;
}

HostAllocation::HostAllocation(UniqueFd fd, std::size_t num_bytes, std::size_t hole)
    : fd_(std::move(fd)), num_bytes_(num_bytes), hole_(hole) {}

std::unique_ptr<HostAllocation> HostAllocation::Create(std::size_t num_bytes,
                                                       std::size_t view_offset,
                                                       const HostOptions& options,
                                                       std::string* warning) {
  const std::size_t hole = LeadingHole(num_bytes, view_offset);
  std::unique_ptr<HostAllocation> made(
      new HostAllocation(CreateMemoryFile(options.name, hole + num_bytes), num_bytes, hole));
  made->MapStaging();
  if (options.numa_node >= 0) {
    *warning = PreferNode(made->staging(), num_bytes, options.numa_node);
  }
  if (options.huge_pages) made->MakeHugePages();
  return made;
}

std::unique_ptr<HostAllocation> HostAllocation::Import(UniqueFd fd, std::size_t num_bytes,
                                                       std::size_t view_offset,
                                                       const HostOptions& options) {
  const std::size_t hole = LeadingHole(num_bytes, view_offset);
  ReceivedFile file = AcceptMemoryFile(std::move(fd), hole + num_bytes, options.require_write_seal);
  std::unique_ptr<HostAllocation> made(new HostAllocation(std::move(file.fd), num_bytes, hole));
  made->is_write_sealed_ = file.is_write_sealed;
  return made;
}

std::byte* HostAllocation::staging() const {
  return staging_.address() == nullptr ? nullptr : staging_.address() + hole_;
}

void HostAllocation::MapStaging() {
  AddressRange range(hole_ + num_bytes_);
  range.MapFile(hole_, num_bytes_, PROT_READ | PROT_WRITE, fd(), hole_);
  ::madvise(range.address() + hole_, num_bytes_, MADV_DONTDUMP);
  // A forked child would keep a writable mapping for its whole life, and so prevent the seal.
  ::madvise(range.address() + hole_, num_bytes_, MADV_DONTFORK);
  staging_ = std::move(range);
}

// Opens the read-only descriptor first: nothing can fail after the staging range is unmapped.
void HostAllocation::Seal() {
  UniqueFd read_only = ReopenReadOnly(fd());
  staging_ = AddressRange();
  is_write_sealed_ = SealContents(fd());
  fd_ = std::move(read_only);
}

// Asks for huge pages before the block is filled, and ignores a refusal. A huge page costs one
// fault and no copy if it is collapsed from a single small page that was touched. Collapsing after
// the fill would copy every byte once more.
void HostAllocation::MakeHugePages() {
  const std::size_t first = (hole_ + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  const std::size_t last = (hole_ + num_bytes_) / kHugePageBytes * kHugePageBytes;
  if (first >= last) return;
  for (std::size_t at = first; at < last; at += kHugePageBytes) {
    *static_cast<volatile std::byte*>(staging_.address() + at) = std::byte{0};
  }
  ::madvise(staging_.address() + first, last - first, kMadvCollapse);
}

ShareableHandle HostAllocation::Export(HandleType type) const {
  Require(type == HandleType::kFileDescriptor, kNoFabric);
  UniqueFd copy(::fcntl(fd(), F_DUPFD_CLOEXEC, 0));
  if (copy.get() < 0) ThrowErrno("duplicating a block's descriptor");
  return copy;
}

}  // namespace dwdp
