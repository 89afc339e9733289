// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "memory/block.h"

#include <mutex>

#include "base/checks.h"
#include "base/error.h"

namespace dwdp {

Block::Block(std::shared_ptr<MemoryDriver> driver, std::unique_ptr<Allocation> allocation,
             std::size_t view_offset, bool is_sealed)
    : driver_(std::move(driver)),
      allocation_(std::move(allocation)),
      view_offset_(view_offset),
      is_sealed_(is_sealed) {}

std::shared_ptr<Block> Block::Create(std::shared_ptr<MemoryDriver> driver, std::size_t num_bytes,
                                     std::size_t view_offset, bool on_host) {
  RequirePages("a block", num_bytes, view_offset, driver->granularity());
  auto allocation =
      driver->Allocate(num_bytes, view_offset, on_host ? MemoryUse::kHostBlock : MemoryUse::kBlock);
  return std::shared_ptr<Block>(
      new Block(std::move(driver), std::move(allocation), view_offset, false));
}

std::shared_ptr<Block> Block::Import(std::shared_ptr<MemoryDriver> driver, ShareableHandle handle,
                                     std::size_t num_bytes, std::size_t view_offset) {
  RequirePages("an imported block", num_bytes, view_offset, driver->granularity());
  auto allocation = driver->Import(std::move(handle), num_bytes, view_offset);
  return std::shared_ptr<Block>(
      new Block(std::move(driver), std::move(allocation), view_offset, true));
}

void Block::Fill(std::size_t offset, const void* source, std::size_t num_bytes) {
  RequireInside("filling a block", offset, num_bytes, this->num_bytes());
  const std::shared_lock lock(filling_);
  RequireOpen();
  driver_->Copy(allocation_->staging() + offset, source, num_bytes);
}

void Block::Seal() {
  const std::unique_lock lock(filling_);
  RequireOpen();
  allocation_->Seal();
  is_sealed_ = true;
}

ShareableHandle Block::Export(HandleType type) const {
  Require(is_sealed_, "expected a sealed block, got an open one; seal it before sharing");
  return allocation_->Export(type);
}

void Block::RequireOpen() const {
  Require(
      !is_sealed_,
      "expected a block that is still open, got a sealed one; fill it first, then seal it once");
}

}  // namespace dwdp
