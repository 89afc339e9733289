// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <string>

namespace dwdp {

// The purposes for which memory is allocated. Blocks are exported to peers. The pages never are:
// memory that peers can import uses up entries of tables in the GPU and the NVLink switch. A host
// block is a block of a GPU's rank that lies in host memory. A scratch page takes the copies that
// measure a link, and is freed after them.
enum class MemoryUse { kBlock, kHostBlock, kSlotPage, kScratchPage, kPrivatePage };

inline bool IsExported(MemoryUse use) {
  return use == MemoryUse::kBlock || use == MemoryUse::kHostBlock;
}

// The name of `use` in error messages.
std::string NameOf(MemoryUse use);

// Advice for the user when no memory is left for `use`.
std::string AdviceWhenFull(MemoryUse use);

}  // namespace dwdp
