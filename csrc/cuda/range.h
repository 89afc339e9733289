// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <map>
#include <memory>
#include <string>

#include "cuda/device.h"

namespace dwdp {

// Addresses on a GPU, and the allocations mapped there. Everything is mapped whole and unmapped
// whole: the driver allows no part of a mapping.
class CudaRange {
 public:
  CudaRange(std::shared_ptr<const CudaDevice> device, std::size_t num_bytes);
  CudaRange(const CudaRange&) = delete;
  CudaRange& operator=(const CudaRange&) = delete;
  // Waits for the GPU: kernels and copies may still be using the range. During a graph capture
  // nobody can wait, and it stays mapped for good.
  ~CudaRange();

  std::byte* address() const { return reinterpret_cast<std::byte*>(start_); }
  std::size_t num_bytes() const { return num_bytes_; }
  // Without access until SetAccess. The mapping keeps the memory, not the handle.
  void Map(std::size_t offset, CUmemGenericAllocationHandle handle, std::size_t num_bytes);
  void SetAccess(std::size_t offset, std::size_t num_bytes, CUmemAccess_flags flags);
  // The range must be mapped without a hole. Tries one call for all of it, then one for each
  // mapping; mappings that the driver doesn't make read-only it makes writable. Returns a warning
  // if there are such, else nothing.
  std::string MakeReadOnly();

 private:
  CUresult TrySetAccess(std::size_t offset, std::size_t num_bytes, CUmemAccess_flags flags);
  void CheckAccess(CUresult result, std::size_t num_bytes) const;
  void Unmap();

  std::shared_ptr<const CudaDevice> device_;
  std::size_t num_bytes_;
  CUdeviceptr start_ = 0;
  std::map<std::size_t, std::size_t> mappings_;  // bytes by offset
};

}  // namespace dwdp
