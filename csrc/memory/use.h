// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <string>

namespace dwdp {

// What memory is allocated for. Blocks are exported to peers, slot pages and private pages never:
// handles that others can import use up entries of the GPU's and the switch's tables.
// Host blocks lie in the host's memory, where a GPU has a host to lie beside.
enum class MemoryUse { kBlock, kHostBlock, kSlotPage, kPrivatePage };

inline bool IsExported(MemoryUse use) {
  return use == MemoryUse::kBlock || use == MemoryUse::kHostBlock;
}

// As error messages name it.
std::string NameOf(MemoryUse use);

// What a user can change when there is no memory left for it.
std::string AdviceWhenFull(MemoryUse use);

}  // namespace dwdp
