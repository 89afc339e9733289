// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "memory/view.h"

#include "base/checks.h"
#include "base/error.h"

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
              ", for which it was made, got " + std::to_string(offset) +
              "; name the offset when the block is created or imported");
  const std::lock_guard lock(changing_);
  RequireFree(offset, block.num_bytes());
  reservation_->Map(offset, block.allocation());
  pieces_[offset] = {block.num_bytes(), false};
}

void View::MapSlotPage(std::size_t offset, const SlotPage& page) {
  const std::lock_guard lock(changing_);
  RequireFree(offset, page.num_bytes());
  reservation_->Map(offset, page.allocation());
  pieces_[offset] = {page.num_bytes(), false};
}

void View::MapPrivate(std::size_t offset, std::size_t num_bytes) {
  const std::lock_guard lock(changing_);
  RequireFree(offset, num_bytes);
  reservation_->MapPrivate(offset, num_bytes);
  const auto piece = pieces_.emplace(offset, Piece{num_bytes, true}).first;
  JoinPrivate(piece);
  if (piece != pieces_.begin()) JoinPrivate(std::prev(piece));
}

void View::FillPrivate(std::size_t offset, const void* source, std::size_t num_bytes) {
  const std::lock_guard lock(changing_);
  RequireOpen();
  const auto next = pieces_.upper_bound(offset);
  const bool is_private = next != pieces_.begin() && std::prev(next)->second.is_private;
  Require(is_private, "expected private pages at offset " + std::to_string(offset) +
                          " of the view, got a block or nothing; map private pages there first");
  const auto& [start, piece] = *std::prev(next);
  RequireInside("filling private pages", offset - start, num_bytes, piece.num_bytes);
  driver_->Copy(address() + offset, source, num_bytes);
}

void View::Finish() {
  const std::lock_guard lock(changing_);
  RequireOpen();
  RequireWhole();
  state_ = State::kFailed;  // if a call below throws, part of the pages may be read-only
  driver_->Warn(reservation_->Protect());
  reservation_->Populate();
  state_ = State::kFinished;
}

std::size_t View::num_maps() const {
  const std::lock_guard lock(changing_);
  return pieces_.size();
}

void View::RequireOpen() const {
  Require(state_ != State::kFailed,
          "expected a view that is still open, got one that failed to finish; make a new one");
  Require(state_ == State::kOpen, "expected a view that is still open, got a finished one");
}

void View::RequireFree(std::size_t offset, std::size_t num_bytes) const {
  RequireOpen();
  RequirePages("a mapping", num_bytes, offset, driver_->granularity());
  RequireInside("mapping into a view", offset, num_bytes, this->num_bytes());
  const auto next = pieces_.lower_bound(offset);
  bool is_free = next == pieces_.end() || offset + num_bytes <= next->first;
  if (next != pieces_.begin()) {
    const auto& [start, piece] = *std::prev(next);
    is_free = is_free && start + piece.num_bytes <= offset;
  }
  Require(is_free, "expected " + std::to_string(num_bytes) + " free bytes at offset " +
                       std::to_string(offset) +
                       " of the view, got an overlap with another mapping");
}

void View::RequireWhole() const {
  std::size_t covered = 0;
  for (const auto& [offset, piece] : pieces_) {
    if (offset != covered) break;
    covered += piece.num_bytes;
  }
  Require(covered == num_bytes(), "expected a view without holes, got one at offset " +
                                      std::to_string(covered) + " of " +
                                      std::to_string(num_bytes()) + "; map every page first");
}

// Merges `piece` with the next one if both are private and adjacent.
void View::JoinPrivate(Pieces::iterator piece) {
  const auto next = std::next(piece);
  if (next == pieces_.end() || !piece->second.is_private || !next->second.is_private) return;
  if (piece->first + piece->second.num_bytes != next->first) return;
  piece->second.num_bytes += next->second.num_bytes;
  pieces_.erase(next);
}

}  // namespace dwdp
