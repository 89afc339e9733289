// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include "cuda/device.h"
#include "memory/handle.h"
#include "memory/use.h"

namespace dwdp {

// The driver's handle of one piece of GPU memory, own or a peer's. Mappings keep the memory
// without it.
class CudaHandle {
 public:
  // New memory of this GPU.
  CudaHandle(std::shared_ptr<const CudaDevice> device, std::size_t num_bytes, MemoryUse use);
  // A peer's memory. A descriptor is closed: the driver's handle keeps the memory.
  CudaHandle(std::shared_ptr<const CudaDevice> device, ShareableHandle handle);
  CudaHandle(const CudaHandle&) = delete;
  CudaHandle& operator=(const CudaHandle&) = delete;
  ~CudaHandle();

  CUmemGenericAllocationHandle get() const { return handle_; }
  ShareableHandle Export(HandleType type) const;

 private:
  void ImportFd(const UniqueFd& fd);
  void ImportFabric(const std::string& bytes);
  UniqueFd ExportFd() const;
  std::string ExportFabric() const;

  std::shared_ptr<const CudaDevice> device_;
  CUmemGenericAllocationHandle handle_ = 0;
};

}  // namespace dwdp
