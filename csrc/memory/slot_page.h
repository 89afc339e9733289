// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <memory>

#include "memory/driver.h"

namespace dwdp {

// A piece of a slot: local memory that copies write until the process ends, and that several views
// show read-only. It is always mapped whole, never sealed and never exported.
class SlotPage : public std::enable_shared_from_this<SlotPage> {
 public:
  // `view_offset` is where most views will map it. Views that map it at another offset modulo 2 MiB
  // can't use huge pages. `use` is another where the page takes copies but no view shows it.
  SlotPage(std::shared_ptr<MemoryDriver> driver, std::size_t num_bytes, std::size_t view_offset,
           MemoryUse use = MemoryUse::kSlotPage);
  SlotPage(const SlotPage&) = delete;
  SlotPage& operator=(const SlotPage&) = delete;

  // Where copies write. Views map the same memory at other addresses, read-only.
  std::byte* address() const { return allocation_->staging(); }
  std::size_t num_bytes() const { return allocation_->num_bytes(); }
  const Allocation& allocation() const { return *allocation_; }

 private:
  std::shared_ptr<MemoryDriver> driver_;
  std::unique_ptr<Allocation> allocation_;
};

}  // namespace dwdp
