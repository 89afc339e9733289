// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <memory>

#include "memory/driver.h"

namespace dwdp {

// Local memory that copies write, for the process's life, and several views show read-only.
// Always mapped whole; never sealed, never exported.
class SlotPage : public std::enable_shared_from_this<SlotPage> {
 public:
  // `view_offset` is where most views will map it: congruent offsets can use huge pages.
  SlotPage(std::shared_ptr<MemoryDriver> driver, std::size_t num_bytes, std::size_t view_offset);
  SlotPage(const SlotPage&) = delete;
  SlotPage& operator=(const SlotPage&) = delete;

  // The writable alias; views are never written through.
  std::byte* address() const { return allocation_->staging(); }
  std::size_t num_bytes() const { return allocation_->num_bytes(); }
  const Allocation& allocation() const { return *allocation_; }

 private:
  std::shared_ptr<MemoryDriver> driver_;
  std::unique_ptr<Allocation> allocation_;
};

}  // namespace dwdp
