// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <atomic>
#include <memory>
#include <shared_mutex>

#include "memory/driver.h"

namespace dwdp {

// One physical allocation, filled by its owner or imported from a peer, always mapped whole.
// Threads may fill disjoint ranges at the same time; sealing waits for them.
class Block {
 public:
  // on_host: in the host's memory, which a GPU reads over its bus.
  static std::shared_ptr<Block> Create(std::shared_ptr<MemoryDriver> driver, std::size_t num_bytes,
                                       std::size_t view_offset, bool on_host = false);
  // Takes the handle, whatever happens.
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
  std::shared_mutex filling_;  // Seal unmaps the pages that Fill writes
  std::atomic<bool> is_sealed_;
};

}  // namespace dwdp
