// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "host_reservation.h"

#include <sys/mman.h>

#include "error.h"
#include "host_allocation.h"

namespace dwdp {
namespace {

constexpr int kMadvPopulateRead = 22;  // Linux 5.14
constexpr std::size_t kPageBytes = 4096;

std::uintptr_t RoundUp(std::uintptr_t value, std::size_t step) {
  return (value + step - 1) / step * step;
}

}  // namespace

HostReservation::HostReservation(std::size_t num_bytes) : num_bytes_(num_bytes) {
  const std::size_t room = num_bytes + kHugePageBytes;
  void* base = ::mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED)
    ThrowErrno("reserving " + std::to_string(num_bytes) + " bytes of address");
  const auto start = reinterpret_cast<std::uintptr_t>(base);
  const std::uintptr_t aligned = RoundUp(start, kHugePageBytes);
  const std::uintptr_t end = RoundUp(aligned + num_bytes, kPageBytes);
  if (aligned > start) ::munmap(base, aligned - start);
  if (start + room > end) ::munmap(reinterpret_cast<void*>(end), start + room - end);
  address_ = reinterpret_cast<std::byte*>(aligned);
}

HostReservation::~HostReservation() { ::munmap(address_, num_bytes_); }

void HostReservation::Map(std::size_t offset, const Allocation& allocation) {
  const auto& file = dynamic_cast<const HostAllocation&>(allocation);
  void* mapping = ::mmap(address_ + offset, file.num_bytes(), PROT_READ, MAP_SHARED | MAP_FIXED,
                         file.fd(), static_cast<off_t>(file.file_offset()));
  if (mapping == MAP_FAILED) ThrowErrno("mapping " + std::to_string(file.num_bytes()) + " bytes");
}

void HostReservation::MapPrivate(std::size_t offset, std::size_t num_bytes) {
  void* mapping = ::mmap(address_ + offset, num_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (mapping == MAP_FAILED) ThrowErrno("mapping a boundary page");
}

void HostReservation::Protect() {
  if (::mprotect(address_, num_bytes_, PROT_READ) != 0) ThrowErrno("protecting a view");
  ::madvise(address_, num_bytes_, MADV_DONTDUMP);
  Populate();
}

// Page tables are filled now: a first touch costs two to three times a later one.
void HostReservation::Populate() {
  if (::madvise(address_, num_bytes_, kMadvPopulateRead) == 0) return;
  if (errno != EINVAL) ThrowErrno("populating a view");
  for (std::size_t at = 0; at < num_bytes_; at += kPageBytes) {
    static_cast<void>(*reinterpret_cast<volatile std::byte*>(address_ + at));
  }
}

}  // namespace dwdp
