// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include "cuda/device.h"
#include "memory/handle.h"
#include "memory/use.h"

namespace dwdp {

// The CUDA driver's handle of one piece of memory, allocated here or imported from a peer. Mappings
// keep the memory alive after the handle is released.
class CudaHandle {
 public:
  // Allocates new memory for `use`.
  CudaHandle(std::shared_ptr<const CudaDevice> device, std::size_t num_bytes, MemoryUse use);
  // Imports a peer's memory. A file descriptor is closed afterwards: the CUDA driver's handle keeps
  // the memory alive.
  CudaHandle(std::shared_ptr<const CudaDevice> device, ShareableHandle handle);
  CudaHandle(const CudaHandle&) = delete;
  CudaHandle& operator=(const CudaHandle&) = delete;
  ~CudaHandle();

  CUmemGenericAllocationHandle get() const { return handle_; }
  ShareableHandle Export(HandleType type) const;

 private:
  void ImportFd(const UniqueFd& fd);
  void ImportFabric(const FabricHandle& handle);
  UniqueFd ExportFd() const;
  FabricHandle ExportFabric() const;

  std::shared_ptr<const CudaDevice> device_;
  CUmemGenericAllocationHandle handle_ = 0;
};

}  // namespace dwdp
