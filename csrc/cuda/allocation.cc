// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/allocation.h"

namespace dwdp {

std::unique_ptr<CudaAllocation> CudaAllocation::Create(
    const std::shared_ptr<const CudaDevice>& device, std::size_t num_bytes, MemoryUse use) {
  std::unique_ptr<CudaAllocation> made(new CudaAllocation(device, num_bytes, num_bytes, use));
  CudaRange& staging = made->staging_.emplace(device, num_bytes);
  staging.Map(0, made->handle(), num_bytes);
  staging.SetAccess(0, num_bytes, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
  device->Zero(staging.address(), num_bytes);
  return made;
}

std::unique_ptr<CudaAllocation> CudaAllocation::Import(
    const std::shared_ptr<const CudaDevice>& device, ShareableHandle handle,
    std::size_t num_bytes) {
  return std::unique_ptr<CudaAllocation>(new CudaAllocation(device, num_bytes, std::move(handle)));
}

}  // namespace dwdp
