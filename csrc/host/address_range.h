// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <cstddef>

namespace dwdp {

inline constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

std::size_t PageBytes();

// Owns a range of addresses that starts at a 2 MiB boundary, and everything that is mapped there.
class AddressRange {
 public:
  AddressRange() = default;
  // Reserves addresses only: touching them before something is mapped there is a fault.
  explicit AddressRange(std::size_t num_bytes);
  AddressRange(AddressRange&& other) noexcept { swap(other); }
  AddressRange& operator=(AddressRange&& other) noexcept;
  AddressRange(const AddressRange&) = delete;
  AddressRange& operator=(const AddressRange&) = delete;
  ~AddressRange();

  std::byte* address() const { return address_; }
  std::size_t num_bytes() const { return num_bytes_; }

  // Replaces the pages at `offset` by those of a file. The arguments `protection`, `fd` and
  // `file_offset` are those of mmap.
  void MapFile(std::size_t offset, std::size_t num_bytes, int protection, int fd,
               std::size_t file_offset);
  void MapZeroed(std::size_t offset, std::size_t num_bytes);

 private:
  void swap(AddressRange& other) noexcept;

  std::byte* address_ = nullptr;
  std::size_t num_bytes_ = 0;
};

}  // namespace dwdp
