// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda_device.h"

#include "error.h"

namespace dwdp {

CudaDevice::CudaDevice(std::shared_ptr<const CudaApi> api, int ordinal)
    : api_(std::move(api)), ordinal_(ordinal) {
  const std::string gpu = " of GPU " + std::to_string(ordinal);
  api_->Check(api_->cuDeviceGet(&device_, ordinal), "cuDeviceGet" + gpu);
  RequireAttribute(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
                   "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED");
  RequireAttribute(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
                   "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED");
  const CUmemAllocationProp wanted = properties();
  api_->Check(
      api_->cuMemGetAllocationGranularity(&granularity_, &wanted, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
      "cuMemGetAllocationGranularity" + gpu);
  // Last: what is retained must be given back, and a constructor that throws gives nothing back.
  api_->Check(api_->cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain" + gpu);
}

CudaDevice::~CudaDevice() { api_->cuDevicePrimaryCtxRelease(device_); }

CUmemAllocationProp CudaDevice::properties() const {
  CUmemAllocationProp wanted = {};
  wanted.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  wanted.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  wanted.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = ordinal_};
  return wanted;
}

void CudaDevice::RequireAttribute(CUdevice_attribute attribute, const std::string& name) const {
  int value = 0;
  api_->Check(api_->cuDeviceGetAttribute(&value, attribute, device_),
              "cuDeviceGetAttribute(" + name + ")");
  Require(value != 0, "expected GPU " + std::to_string(ordinal_) + " to have CU_DEVICE_ATTRIBUTE_" +
                          name + ", got none; dwdp can't share memory of this GPU");
}

void CudaDevice::Zero(std::byte* address, std::size_t num_bytes) const {
  const CudaScope scope(*this);
  api_->Check(api_->cuMemsetD8Async(reinterpret_cast<CUdeviceptr>(address), 0, num_bytes, nullptr),
              "cuMemsetD8Async of " + std::to_string(num_bytes) + " bytes");
  api_->Check(api_->cuCtxSynchronize(), "cuCtxSynchronize after cuMemsetD8Async");
}

CudaScope::CudaScope(const CudaDevice& device) : api_(device.api()) {
  api_.Check(api_.cuCtxPushCurrent(device.context()), "cuCtxPushCurrent");
}

CudaScope::~CudaScope() {
  CUcontext popped = nullptr;
  api_.cuCtxPopCurrent(&popped);
}

}  // namespace dwdp
