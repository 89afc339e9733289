// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/device.h"

#include "base/error.h"
#include "cuda/handle_types.h"

namespace dwdp {
namespace {

constexpr char kRefused[] = "; dwdp can't share memory of this GPU";
constexpr char kNoHostBlocks[] =
    "; this GPU can't use experts in host memory: leave dwdp.host_experts out";

void RequirePages(const CudaContext& context) {
  const std::optional<std::string> obstacle =
      FindAttributeObstacle(context, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
                            "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED");
  Require(!obstacle, obstacle.value_or("") + kRefused);
}

void RequireHandles(const HandleObstacles& obstacles) {
  std::string all;
  for (const auto& [type, obstacle] : obstacles) {
    if (!obstacle) return;
    all += (all.empty() ? "" : "; ") + *obstacle;
  }
  throw DriverError(all + kRefused);
}

}  // namespace

CudaDevice::CudaDevice(std::shared_ptr<const CudaApi> api, int ordinal)
    : context_(std::move(api), ordinal) {
  RequirePages(context_);
  obstacles_ = FindHandleObstacles(context_);
  RequireHandles(obstacles_);
  const CUmemAllocationProp wanted = properties(MemoryUse::kBlock);
  this->api().Check(this->api().cuMemGetAllocationGranularity(&granularity_, &wanted,
                                                              CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                    "cuMemGetAllocationGranularity of GPU " + std::to_string(ordinal));
}

CUmemAllocationProp CudaDevice::properties(MemoryUse use) const {
  if (use == MemoryUse::kHostBlock) {
    const std::optional<std::string> obstacle = FindHostObstacle(context_);
    Require(!obstacle, obstacle.value_or("") + kNoHostBlocks);
    return HostProperties(context_);
  }
  return IsExported(use) ? ShareableProperties(ordinal(), obstacles_) : LocalProperties(ordinal());
}

void CudaDevice::Zero(std::byte* address, std::size_t num_bytes) const {
  const CudaScope scope(context_);
  api().Check(api().cuMemsetD8Async(reinterpret_cast<CUdeviceptr>(address), 0, num_bytes, nullptr),
              "cuMemsetD8Async of " + std::to_string(num_bytes) + " bytes");
  api().Check(api().cuCtxSynchronize(), "cuCtxSynchronize after cuMemsetD8Async");
}

}  // namespace dwdp
