// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include "cuda_device.h"
#include "unique_fd.h"

namespace dwdp {

// The driver's handle of one piece of GPU memory, own or a peer's. Mappings keep the memory
// without it.
class CudaHandle {
 public:
  // New memory of this GPU.
  CudaHandle(std::shared_ptr<const CudaDevice> device, std::size_t num_bytes);
  // A peer's memory. The descriptor is closed: the handle keeps the memory.
  CudaHandle(std::shared_ptr<const CudaDevice> device, UniqueFd fd);
  CudaHandle(const CudaHandle&) = delete;
  CudaHandle& operator=(const CudaHandle&) = delete;
  ~CudaHandle();

  CUmemGenericAllocationHandle get() const { return handle_; }
  UniqueFd Export() const;

 private:
  std::shared_ptr<const CudaDevice> device_;
  CUmemGenericAllocationHandle handle_ = 0;
};

}  // namespace dwdp
