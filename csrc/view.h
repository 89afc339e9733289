// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <map>
#include <memory>

#include "block.h"
#include "memory_driver.h"

namespace dwdp {

// An address range that shows a whole expert tensor: blocks and private pages side by side.
// Pages are given in any order, once each; Finish makes it read-only, for good.
class View {
 public:
  View(std::shared_ptr<MemoryDriver> driver, std::size_t num_bytes);
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  void MapBlock(std::size_t offset, const Block& block);
  void MapPrivate(std::size_t offset, std::size_t num_bytes);
  void FillPrivate(std::size_t offset, const void* source, std::size_t num_bytes);
  void Finish();

  std::byte* address() const { return reservation_->address(); }
  std::size_t num_bytes() const { return reservation_->num_bytes(); }
  std::size_t num_maps() const { return pieces_.size(); }
  bool is_finished() const { return is_finished_; }

 private:
  struct Piece {
    std::size_t num_bytes;
    bool is_private;
  };

  void Claim(std::size_t offset, std::size_t num_bytes);
  void RequireOpen() const;

  std::shared_ptr<MemoryDriver> driver_;
  std::unique_ptr<Reservation> reservation_;
  std::map<std::size_t, Piece> pieces_;  // by offset
  bool is_finished_ = false;
};

}  // namespace dwdp
