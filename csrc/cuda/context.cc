// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/context.h"

namespace dwdp {

CudaContext::CudaContext(std::shared_ptr<const CudaApi> api, int ordinal)
    : api_(std::move(api)), ordinal_(ordinal) {
  const std::string gpu = " of GPU " + std::to_string(ordinal);
  api_->Check(api_->cuDeviceGet(&device_, ordinal), "cuDeviceGet" + gpu);
  api_->Check(api_->cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain" + gpu);
}

CudaContext::~CudaContext() { api_->cuDevicePrimaryCtxRelease(device_); }

CudaScope::CudaScope(const CudaContext& context) : api_(context.api()) {
  api_.Check(api_.cuCtxPushCurrent(context.get()), "cuCtxPushCurrent");
}

CudaScope::~CudaScope() {
  CUcontext popped = nullptr;
  api_.cuCtxPopCurrent(&popped);
}

}  // namespace dwdp
