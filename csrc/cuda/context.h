// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <memory>

#include "cuda/api.h"

namespace dwdp {

// Retains a GPU's primary context, which PyTorch uses, too.
class CudaContext {
 public:
  CudaContext(std::shared_ptr<const CudaApi> api, int ordinal);
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;
  ~CudaContext();

  const CudaApi& api() const { return *api_; }
  int ordinal() const { return ordinal_; }
  CUdevice device() const { return device_; }
  CUcontext get() const { return context_; }

 private:
  std::shared_ptr<const CudaApi> api_;
  int ordinal_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
};

// Makes a context current on the calling thread for as long as the object lives.
class CudaScope {
 public:
  explicit CudaScope(const CudaContext& context);
  CudaScope(const CudaScope&) = delete;
  CudaScope& operator=(const CudaScope&) = delete;
  ~CudaScope();

 private:
  const CudaApi& api_;
};

}  // namespace dwdp
