// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <cstddef>
#include <memory>

#include "cuda/context.h"
#include "memory/handle.h"
#include "memory/use.h"

namespace dwdp {

// One GPU and what it can do.
class CudaDevice {
 public:
  // Throws DriverError if the GPU lacks virtual memory management, or if no type of handle can
  // share its memory.
  CudaDevice(std::shared_ptr<const CudaApi> api, int ordinal);
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  const CudaApi& api() const { return context_.api(); }
  int ordinal() const { return context_.ordinal(); }
  const CudaContext& context() const { return context_; }
  std::size_t granularity() const { return granularity_; }
  const HandleObstacles& obstacles() const { return obstacles_; }
  // The properties of memory that is allocated for `use`: on this GPU or, for kHostBlock, on the
  // host near it. Memory for export has every type of handle without an obstacle; on the host it
  // has file descriptors only. Throws DriverError if the GPU can't use memory of the host.
  CUmemAllocationProp properties(MemoryUse use) const;
  // Fills memory with zeroes, and returns when that is done.
  void Zero(std::byte* address, std::size_t num_bytes) const;

 private:
  CudaContext context_;
  HandleObstacles obstacles_;
  std::size_t granularity_ = 0;
};

}  // namespace dwdp
