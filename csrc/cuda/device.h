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
  // Refuses a GPU without virtual memory management, or whose memory no type of handle can share.
  CudaDevice(std::shared_ptr<const CudaApi> api, int ordinal);
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  const CudaApi& api() const { return context_.api(); }
  int ordinal() const { return context_.ordinal(); }
  const CudaContext& context() const { return context_; }
  std::size_t granularity() const { return granularity_; }
  const HandleObstacles& obstacles() const { return obstacles_; }
  // Memory pinned to this GPU, or near it on the host. What is exported has every type of handle
  // without an obstacle; on the host file descriptors only.
  CUmemAllocationProp properties(MemoryUse use) const;
  // Done when it returns.
  void Zero(std::byte* address, std::size_t num_bytes) const;

 private:
  CudaContext context_;
  HandleObstacles obstacles_;
  std::size_t granularity_ = 0;
};

}  // namespace dwdp
