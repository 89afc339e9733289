// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "host/address_range.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <utility>

#include "base/error.h"

namespace dwdp {
namespace {

constexpr int kReserveFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

std::uintptr_t RoundUp(std::uintptr_t value, std::size_t step) {
  return (value + step - 1) / step * step;
}

void Trim(std::uintptr_t start, std::uintptr_t end) {
  if (start < end) ::munmap(reinterpret_cast<void*>(start), end - start);
}

[[noreturn]] void ThrowMap(const char* what, std::size_t num_bytes) {
  ThrowErrno("mmap of " + std::to_string(num_bytes) + " bytes (" + what + ")");
}

}  // namespace

std::size_t PageBytes() { return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)); }

// mmap promises page alignment only: reserve more, then give the surplus back.
AddressRange::AddressRange(std::size_t num_bytes) : num_bytes_(num_bytes) {
  const std::size_t room = num_bytes + kHugePageBytes;
  void* base = ::mmap(nullptr, room, PROT_NONE, kReserveFlags, -1, 0);
  if (base == MAP_FAILED) ThrowMap("an address range", num_bytes);
  const auto start = reinterpret_cast<std::uintptr_t>(base);
  const std::uintptr_t aligned = RoundUp(start, kHugePageBytes);
  Trim(start, aligned);
  Trim(aligned + num_bytes, start + room);
  address_ = reinterpret_cast<std::byte*>(aligned);
}

AddressRange& AddressRange::operator=(AddressRange&& other) noexcept {
  AddressRange taken(std::move(other));
  swap(taken);
  return *this;
}

AddressRange::~AddressRange() {
  if (address_ != nullptr) ::munmap(address_, num_bytes_);
}

void AddressRange::MapFile(std::size_t offset, std::size_t num_bytes, int protection, int fd,
                           std::size_t file_offset) {
  void* mapping = ::mmap(address_ + offset, num_bytes, protection, MAP_SHARED | MAP_FIXED, fd,
                         static_cast<off_t>(file_offset));
  if (mapping == MAP_FAILED) ThrowMap("a memory file", num_bytes);
}

void AddressRange::MapZeroed(std::size_t offset, std::size_t num_bytes) {
  void* mapping = ::mmap(address_ + offset, num_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (mapping == MAP_FAILED) ThrowMap("private pages", num_bytes);
}

void AddressRange::swap(AddressRange& other) noexcept {
  std::swap(address_, other.address_);
  std::swap(num_bytes_, other.num_bytes_);
}

}  // namespace dwdp
