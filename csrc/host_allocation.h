// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <string>

#include "memory_driver.h"

namespace dwdp {

inline constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

// How many bytes of unmapped hole lead a memory file, so that file offsets and view addresses are
// congruent modulo 2 MiB, which huge pages need. Owner and importer compute the same.
std::size_t LeadingHole(std::size_t num_bytes, std::size_t view_offset);

struct HostOptions {
  std::string name = "dwdp";
  int numa_node = -1;
  bool huge_pages = true;
  bool require_write_seal = true;
};

// A sealed memory file (memfd). Own ones start writable; imported ones are sealed already.
class HostAllocation : public Allocation {
 public:
  static std::unique_ptr<HostAllocation> Create(std::size_t num_bytes, std::size_t view_offset,
                                                const HostOptions& options, std::string* warning);
  static std::unique_ptr<HostAllocation> Import(UniqueFd fd, std::size_t num_bytes,
                                                std::size_t view_offset,
                                                const HostOptions& options);
  ~HostAllocation() override;
  HostAllocation(const HostAllocation&) = delete;
  HostAllocation& operator=(const HostAllocation&) = delete;

  std::size_t num_bytes() const override { return num_bytes_; }
  std::byte* staging() const override { return staging_; }
  void Seal() override;
  bool is_write_sealed() const override { return is_write_sealed_; }
  UniqueFd Export() const override;

  int fd() const { return fd_.get(); }
  std::size_t file_offset() const { return hole_; }

 private:
  HostAllocation(UniqueFd fd, std::size_t num_bytes, std::size_t hole, bool huge_pages);
  void MapStaging(int numa_node, std::string* warning);
  void UnmapStaging();

  UniqueFd fd_;
  std::size_t num_bytes_;
  std::size_t hole_;
  bool huge_pages_;
  bool is_write_sealed_ = false;
  std::byte* staging_base_ = nullptr;
  std::byte* staging_ = nullptr;
};

}  // namespace dwdp
