// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <string>

#include "host/address_range.h"
#include "memory/driver.h"

namespace dwdp {

// The number of bytes of the hole at the start of a memory file. The hole makes file offsets and
// view addresses congruent modulo 2 MiB, as huge pages need. It is never mapped, so it takes no
// memory. Owner and importer compute the same number.
std::size_t LeadingHole(std::size_t num_bytes, std::size_t view_offset);

inline constexpr char kNoFabric[] =
    "expected host memory to be shared by file descriptors, got a fabric handle; use one kind of "
    "memory on every rank";

struct HostOptions {
  std::string name = "dwdp";  // shown in /proc/PID/maps
  int numa_node = -1;         // preferred for own memory; -1: none
  bool huge_pages = true;
  bool require_write_seal = true;  // refuse imports that aren't sealed against writes
};

// A memory file (memfd). A file that is created starts writable; an imported one is sealed already.
class HostAllocation : public Allocation {
 public:
  // `warning` is set when the memory couldn't be bound to its NUMA node.
  static std::unique_ptr<HostAllocation> Create(std::size_t num_bytes, std::size_t view_offset,
                                                const HostOptions& options, std::string* warning);
  static std::unique_ptr<HostAllocation> Import(UniqueFd fd, std::size_t num_bytes,
                                                std::size_t view_offset,
                                                const HostOptions& options);

  std::size_t num_bytes() const override { return num_bytes_; }
  std::byte* staging() const override;
  void Seal() override;
  bool is_write_sealed() const override { return is_write_sealed_; }
  ShareableHandle Export(HandleType type) const override;

  int fd() const { return fd_.get(); }
  std::size_t file_offset() const { return hole_; }

 private:
  HostAllocation(UniqueFd fd, std::size_t num_bytes, std::size_t hole);
  void MapStaging();
  void MakeHugePages();

  UniqueFd fd_;
  std::size_t num_bytes_;
  std::size_t hole_;
  bool is_write_sealed_ = false;
  AddressRange staging_;  // covers the hole and the bytes; empty once sealed
};

}  // namespace dwdp
