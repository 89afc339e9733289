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

// An address range that shows a whole expert tensor: blocks, slot pages and private pages side by
// side.
//
// * Memory is mapped in any order, once at each address. Finish makes the view read-only for good.
// * The mappings keep their memory alive: blocks may be destroyed before the view.
// * Threads may call it at the same time: a lock lets one of them change the view while the others
//   wait.
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
  // The number of mappings. Adjacent private ranges count as one, as they do for the kernel.
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
