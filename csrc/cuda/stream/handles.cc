// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/stream/handles.h"

namespace dwdp {

CudaStream::CudaStream(const CudaDevice& device, bool high_priority) : api_(device.api()) {
  const CudaScope scope(device.context());
  int lowest = 0;
  int highest = 0;
  api_.Check(api_.cuCtxGetStreamPriorityRange(&lowest, &highest), "cuCtxGetStreamPriorityRange");
  api_.Check(api_.cuStreamCreateWithPriority(&stream_, CU_STREAM_NON_BLOCKING,
                                             high_priority ? highest : lowest),
             "cuStreamCreateWithPriority");
}

CudaEvent::CudaEvent(const CudaDevice& device, bool has_timing) : api_(device.api()) {
  const CudaScope scope(device.context());
  const unsigned flags = has_timing ? CU_EVENT_DEFAULT : CU_EVENT_DISABLE_TIMING;
  api_.Check(api_.cuEventCreate(&event_, flags), "cuEventCreate");
}

bool CudaEvent::HasPassed() const {
  const CUresult result = api_.cuEventQuery(event_);
  if (result == CUDA_ERROR_NOT_READY) return false;
  api_.Check(result, "cuEventQuery");
  return true;
}

}  // namespace dwdp
