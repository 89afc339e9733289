// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "memory/block.h"
#include "memory/driver.h"
#include "memory/slot_page.h"

namespace dwdp {

// An address range that shows a whole expert tensor: blocks and private pages side by side.
//
// * Pages are given in any order, once each; Finish makes the view read-only, for good.
// * Mappings are the view's own: blocks and driver may go before it.
// * One thread at a time changes a view; others wait.
class View : public std::enable_shared_from_this<View> {
 public:
  View(std::shared_ptr<MemoryDriver> driver, std::size_t num_bytes);
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  void MapBlock(std::size_t offset, const Block& block);
  void MapSlotPage(std::size_t offset, const SlotPage& page);
  void MapPrivate(std::size_t offset, std::size_t num_bytes);
  void FillPrivate(std::size_t offset, const void* source, std::size_t num_bytes);
  void Finish();

  std::byte* address() const { return reservation_->address(); }
  int gpu() const { return driver_->gpu(); }
  std::size_t num_bytes() const { return reservation_->num_bytes(); }
  // Mappings made; private ranges that touch count as one, as they do for the kernel.
  std::size_t num_maps() const;
  bool is_finished() const { return state_ == State::kFinished; }

 private:
  enum class State { kOpen, kFailed, kFinished };
  struct Piece {
    std::size_t num_bytes;
    bool is_private;
  };
  using Pieces = std::map<std::size_t, Piece>;  // by offset

  void RequireOpen() const;
  void RequireFree(std::size_t offset, std::size_t num_bytes) const;
  void RequireWhole() const;
  void JoinPrivate(Pieces::iterator piece);

  std::shared_ptr<MemoryDriver> driver_;
  std::unique_ptr<Reservation> reservation_;
  mutable std::mutex changing_;
  Pieces pieces_;
  std::atomic<State> state_ = State::kOpen;
};

}  // namespace dwdp
