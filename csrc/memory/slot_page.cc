// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "memory/slot_page.h"

#include "base/checks.h"

namespace dwdp {
namespace {

std::unique_ptr<Allocation> AllocatePage(MemoryDriver& driver, std::size_t num_bytes,
                                         std::size_t view_offset, MemoryUse use) {
  RequirePages("a slot page", num_bytes, view_offset, driver.granularity());
  return driver.Allocate(num_bytes, view_offset, use);
}

}  // namespace

SlotPage::SlotPage(std::shared_ptr<MemoryDriver> driver, std::size_t num_bytes,
                   std::size_t view_offset, MemoryUse use)
    : driver_(std::move(driver)),
      allocation_(AllocatePage(*driver_, num_bytes, view_offset, use)) {}

}  // namespace dwdp
