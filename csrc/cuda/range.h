// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <map>
#include <memory>
#include <string>

#include "cuda/device.h"

namespace dwdp {

// An address range on a GPU, and the allocations that are mapped there. Each is mapped and unmapped
// whole: the driver allows nothing else.
class CudaRange {
 public:
  CudaRange(std::shared_ptr<const CudaDevice> device, std::size_t num_bytes);
  CudaRange(const CudaRange&) = delete;
  CudaRange& operator=(const CudaRange&) = delete;
  // Waits for the GPU before it unmaps, as kernels and copies may still be using the range. During
  // a graph capture it can't wait: the range then stays mapped until the process ends.
  ~CudaRange();

  std::byte* address() const { return reinterpret_cast<std::byte*>(start_); }
  std::size_t num_bytes() const { return num_bytes_; }
  // The memory can't be accessed until SetAccess. The mapping keeps the memory alive; the handle
  // may be released.
  void Map(std::size_t offset, CUmemGenericAllocationHandle handle, std::size_t num_bytes);
  void SetAccess(std::size_t offset, std::size_t num_bytes, CUmemAccess_flags flags);
  // Makes the range, which must be mapped without a hole, read-only. Tries one call for the whole
  // range, then one call for each mapping. A mapping that the driver doesn't make read-only is made
  // writable. Returns a warning if there is such a mapping, else "".
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
