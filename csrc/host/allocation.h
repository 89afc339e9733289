// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <string>

#include "host/address_range.h"
#include "memory/driver.h"

namespace dwdp {

// How many bytes of hole lead a memory file, so that file offsets and view addresses are congruent
// modulo 2 MiB, which huge pages need. The hole is never mapped, so it costs no memory. Owner and
// importer compute the same.
std::size_t LeadingHole(std::size_t num_bytes, std::size_t view_offset);

inline constexpr char kNoFabric[] =
    "expected host memory to be shared by file descriptors, got a fabric handle; use one kind of "
    "memory on every rank";

struct HostOptions {
  std::string name = "dwdp";  // shown in /proc/PID/maps
  int numa_node = -1;
  bool huge_pages = true;
  bool require_write_seal = true;
};

// A memory file (memfd). Own ones start writable; imported ones are sealed already.
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
  AddressRange staging_;  // of hole and bytes; empty once sealed
};

}  // namespace dwdp
