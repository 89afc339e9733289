// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "memory/use.h"

namespace dwdp {
namespace {

std::string OptionsWhenFull(MemoryUse use) {
  switch (use) {
    case MemoryUse::kBlock:
    case MemoryUse::kScratchPage:
      return "start more ranks, or keep experts in host memory (dwdp.host_experts)";
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
    case MemoryUse::kHostBlock:
      return "a block of experts in host memory";
    case MemoryUse::kSlotPage:
      return "a page of a slot";
    case MemoryUse::kScratchPage:
      return "the scratch page that link measurements copy to";
    default:
      return "a private page of a view";
  }
}

std::string AdviceWhenFull(MemoryUse use) {
  if (use == MemoryUse::kHostBlock) return "free host memory, or lower dwdp.host_experts";
  return "free GPU memory ('nvidia-smi' shows who holds it), " + OptionsWhenFull(use);
}

}  // namespace dwdp
