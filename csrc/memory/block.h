// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <atomic>
#include <memory>
#include <shared_mutex>

#include "memory/driver.h"

namespace dwdp {

// One physical allocation, which is either filled by its owner or imported from a peer. It is
// always mapped whole. Threads may fill disjoint ranges at the same time; sealing waits for them.
class Block {
 public:
  // Views will map the block at `view_offset`. With `on_host` a GPU's block is allocated in host
  // memory, which the GPU reads over its bus. Throws DriverError for `on_host` on a rank on CPUs,
  // or if the GPU can't use host memory.
  static std::shared_ptr<Block> Create(std::shared_ptr<MemoryDriver> driver, std::size_t num_bytes,
                                       std::size_t view_offset, bool on_host = false);
  // Owns `handle` from here on, also if the import fails.
  static std::shared_ptr<Block> Import(std::shared_ptr<MemoryDriver> driver, ShareableHandle handle,
                                       std::size_t num_bytes, std::size_t view_offset);
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void Fill(std::size_t offset, const void* source, std::size_t num_bytes);
  void Seal();
  ShareableHandle Export(HandleType type) const;

  std::size_t num_bytes() const { return allocation_->num_bytes(); }
  bool is_sealed() const { return is_sealed_; }
  bool is_write_sealed() const { return is_sealed_ && allocation_->is_write_sealed(); }
  const Allocation& allocation() const { return *allocation_; }
  std::size_t view_offset() const { return view_offset_; }

 private:
  Block(std::shared_ptr<MemoryDriver> driver, std::unique_ptr<Allocation> allocation,
        std::size_t view_offset, bool is_sealed);
  void RequireOpen() const;

  std::shared_ptr<MemoryDriver> driver_;
  std::unique_ptr<Allocation> allocation_;
  std::size_t view_offset_;
  std::shared_mutex filling_;  // Fill shares it; Seal, which unmaps the pages, holds it alone
  std::atomic<bool> is_sealed_;
};

}  // namespace dwdp
