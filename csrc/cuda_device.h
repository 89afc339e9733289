// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>

#include "cuda_api.h"
#include "shareable_handle.h"

namespace dwdp {

// A GPU's primary context, which PyTorch uses too, retained.
class PrimaryContext {
 public:
  PrimaryContext(std::shared_ptr<const CudaApi> api, int ordinal);
  PrimaryContext(const PrimaryContext&) = delete;
  PrimaryContext& operator=(const PrimaryContext&) = delete;
  ~PrimaryContext();

  const CudaApi& api() const { return *api_; }
  CUdevice device() const { return device_; }
  CUcontext get() const { return context_; }

 private:
  std::shared_ptr<const CudaApi> api_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
};

// One GPU and what it can do.
class CudaDevice {
 public:
  // Refuses a GPU without virtual memory management, or whose memory no type of handle can share.
  CudaDevice(std::shared_ptr<const CudaApi> api, int ordinal);
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  const CudaApi& api() const { return context_.api(); }
  int ordinal() const { return ordinal_; }
  CUcontext context() const { return context_.get(); }
  std::size_t granularity() const { return granularity_; }
  // See MemoryDriver::obstacles.
  const std::map<HandleType, std::string>& obstacles() const { return obstacles_; }
  // Pinned to this GPU, exportable by every type of handle without an obstacle.
  CUmemAllocationProp properties() const;
  // Done when it returns.
  void Zero(std::byte* address, std::size_t num_bytes) const;

 private:
  // What memory must have that is exported by these types of handle.
  CUmemAllocationProp PropertiesFor(unsigned handle_types) const;
  // The empty text if the GPU has it, else that it lacks it.
  std::string AttributeObstacle(CUdevice_attribute attribute, const std::string& name) const;
  std::string FabricObstacle() const;
  // Makes and exports a page: a GPU may have the attribute and still be refused.
  std::string FabricTrialObstacle() const;
  std::string ObstacleOf(CUresult result, const std::string& what) const;

  PrimaryContext context_;
  int ordinal_;
  std::map<HandleType, std::string> obstacles_;
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
