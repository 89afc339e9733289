// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "cuda_api.h"

namespace dwdp {

// One GPU: its primary context, which PyTorch uses too, and what it can do.
class CudaDevice {
 public:
  // Refuses a GPU that lacks virtual memory management or handles as file descriptors.
  CudaDevice(std::shared_ptr<const CudaApi> api, int ordinal);
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;
  ~CudaDevice();

  const CudaApi& api() const { return *api_; }
  int ordinal() const { return ordinal_; }
  CUcontext context() const { return context_; }
  std::size_t granularity() const { return granularity_; }
  // Pinned to this GPU, exportable as a file descriptor.
  CUmemAllocationProp properties() const;
  // Done when it returns.
  void Zero(std::byte* address, std::size_t num_bytes) const;

 private:
  void RequireAttribute(CUdevice_attribute attribute, const std::string& name) const;

  std::shared_ptr<const CudaApi> api_;
  int ordinal_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  std::size_t granularity_ = 0;
};

// The device's context, current on this thread while it lives.
class CudaScope {
 public:
  explicit CudaScope(const CudaDevice& device);
  CudaScope(const CudaScope&) = delete;
  CudaScope& operator=(const CudaScope&) = delete;
  ~CudaScope();

 private:
  const CudaApi& api_;
};

}  // namespace dwdp
