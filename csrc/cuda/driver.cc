// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/driver.h"

#include <cstdint>

#include "cuda/allocation.h"
#include "cuda/reservation.h"

namespace dwdp {

CudaDriver::CudaDriver(int ordinal, const std::string& library)
    : device_(std::make_shared<const CudaDevice>(CudaApi::Load(library), ordinal)) {}

std::unique_ptr<Allocation> CudaDriver::Allocate(std::size_t num_bytes, std::size_t,
                                                 MemoryUse use) {
  return CudaAllocation::Create(device_, num_bytes, use);
}

std::unique_ptr<Allocation> CudaDriver::Import(ShareableHandle handle, std::size_t num_bytes,
                                               std::size_t) {
  return CudaAllocation::Import(device_, std::move(handle), num_bytes);
}

std::unique_ptr<Reservation> CudaDriver::Reserve(std::size_t num_bytes) {
  return std::make_unique<CudaReservation>(device_, num_bytes);
}

void CudaDriver::Copy(void* destination, const void* source, std::size_t num_bytes) {
  const CudaApi& api = device_->api();
  const CudaScope scope(device_->context());
  // Kernels may still be writing the source.
  api.Check(api.cuCtxSynchronize(), "cuCtxSynchronize before a copy");
  api.Check(api.cuMemcpyAsync(reinterpret_cast<CUdeviceptr>(destination),
                              reinterpret_cast<CUdeviceptr>(source), num_bytes, nullptr),
            "cuMemcpyAsync of " + std::to_string(num_bytes) + " bytes");
  api.Check(api.cuCtxSynchronize(), "cuCtxSynchronize after a copy");
}

}  // namespace dwdp
