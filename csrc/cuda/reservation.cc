// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/reservation.h"

#include "base/error.h"
#include "cuda/allocation.h"

namespace dwdp {

void CudaReservation::Map(std::size_t offset, const Allocation& allocation) {
  const auto* memory = dynamic_cast<const CudaAllocation*>(&allocation);
  Require(memory != nullptr,
          "expected a block of GPU memory for a view of GPU memory, got another driver's; make "
          "both with the same driver");
  range_.Map(offset, memory->handle(), memory->num_bytes());
}

void CudaReservation::MapPrivate(std::size_t offset, std::size_t num_bytes) {
  const CudaHandle memory(device_, num_bytes, MemoryUse::kPrivatePage);
  range_.Map(offset, memory.get(), num_bytes);
  range_.SetAccess(offset, num_bytes, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
  device_->Zero(address() + offset, num_bytes);
}

}  // namespace dwdp
