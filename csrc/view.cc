// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "view.h"

#include "checks.h"
#include "error.h"

namespace dwdp {
namespace {

std::unique_ptr<Reservation> ReservePages(MemoryDriver& driver, std::size_t num_bytes) {
  RequirePages("a view", num_bytes, 0, driver.granularity());
  return driver.Reserve(num_bytes);
}

}  // namespace

View::View(std::shared_ptr<MemoryDriver> driver, std::size_t num_bytes)
    : driver_(std::move(driver)), reservation_(ReservePages(*driver_, num_bytes)) {}

void View::MapBlock(std::size_t offset, const Block& block) {
  Require(block.is_sealed(), "expected a sealed block, got an open one; seal it before mapping");
  Require(block.view_offset() == offset,
          "expected the block at offset " + std::to_string(block.view_offset()) +
              ", for which it was made, got " + std::to_string(offset));
  Claim(offset, block.num_bytes());
  reservation_->Map(offset, block.allocation());
  pieces_[offset] = {block.num_bytes(), false};
}

void View::MapPrivate(std::size_t offset, std::size_t num_bytes) {
  Claim(offset, num_bytes);
  reservation_->MapPrivate(offset, num_bytes);
  pieces_[offset] = {num_bytes, true};
}

void View::FillPrivate(std::size_t offset, const void* source, std::size_t num_bytes) {
  RequireOpen();
  auto next = pieces_.upper_bound(offset);
  Require(next != pieces_.begin(), "expected private pages, got an unmapped offset of the view");
  const auto& [start, piece] = *std::prev(next);
  Require(piece.is_private, "expected private pages at " + std::to_string(offset) +
                                ", got a block, which is read-only");
  RequireInside("filling private pages", offset - start, num_bytes, piece.num_bytes);
  driver_->Copy(address() + offset, source, num_bytes);
}

void View::Finish() {
  RequireOpen();
  std::size_t covered = 0;
  for (const auto& [offset, piece] : pieces_) {
    if (offset != covered) break;
    covered += piece.num_bytes;
  }
  Require(covered == num_bytes(), "expected a view without holes, got one at offset " +
                                      std::to_string(covered) + " of " +
                                      std::to_string(num_bytes()));
  reservation_->Protect();
  is_finished_ = true;
}

void View::Claim(std::size_t offset, std::size_t num_bytes) {
  RequireOpen();
  RequirePages("a mapping", num_bytes, offset, driver_->granularity());
  RequireInside("mapping into a view", offset, num_bytes, this->num_bytes());
  auto next = pieces_.lower_bound(offset);
  bool is_free = next == pieces_.end() || offset + num_bytes <= next->first;
  if (next != pieces_.begin()) {
    const auto& [start, piece] = *std::prev(next);
    is_free = is_free && start + piece.num_bytes <= offset;
  }
  Require(is_free, "expected free pages at offset " + std::to_string(offset) +
                       " of the view, got an overlap with what is mapped");
}

void View::RequireOpen() const {
  Require(!is_finished_, "expected a view that is still open, got a finished one");
}

}  // namespace dwdp
