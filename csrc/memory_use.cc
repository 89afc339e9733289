// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "memory_use.h"

namespace dwdp {
namespace {

std::string OptionsWhenFull(MemoryUse use) {
  switch (use) {
    case MemoryUse::kBlock:
      return "start more ranks, or lower dwdp.num_experts_per_worker if it is set";
    case MemoryUse::kSlotPage:
      return "lower dwdp.num_slots, or set dwdp.fetch to 'direct', which needs no slots";
    default:
      return "start more ranks, or set dwdp.fetch to 'direct', which needs half of the private "
             "pages and no slots";
  }
}

}  // namespace

std::string NameOf(MemoryUse use) {
  switch (use) {
    case MemoryUse::kBlock:
      return "a block of experts";
    case MemoryUse::kSlotPage:
      return "a page of a slot";
    default:
      return "a private page of a view";
  }
}

std::string AdviceWhenFull(MemoryUse use) {
  return "free GPU memory ('nvidia-smi' shows who holds it), " + OptionsWhenFull(use);
}

}  // namespace dwdp
