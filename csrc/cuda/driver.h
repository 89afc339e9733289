// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include "cuda/device.h"
#include "memory/driver.h"

namespace dwdp {

inline constexpr char kCudaLibrary[] = "libcuda.so.1";

// Memory of one GPU, shared by file descriptors on one host, by fabric handles in an NVLink domain.
class CudaDriver : public MemoryDriver {
 public:
  CudaDriver(int ordinal, const std::string& library);

  std::string kind() const override { return "cuda"; }
  int gpu() const override { return device_->ordinal(); }
  std::size_t granularity() const override { return device_->granularity(); }
  HandleObstacles obstacles() const override { return device_->obstacles(); }
  std::unique_ptr<Allocation> Allocate(std::size_t num_bytes, std::size_t view_offset,
                                       MemoryUse use) override;
  std::unique_ptr<Allocation> Import(ShareableHandle handle, std::size_t num_bytes,
                                     std::size_t view_offset) override;
  std::unique_ptr<Reservation> Reserve(std::size_t num_bytes) override;
  void Copy(void* destination, const void* source, std::size_t num_bytes) override;

  const std::shared_ptr<const CudaDevice>& device() const { return device_; }

 private:
  std::shared_ptr<const CudaDevice> device_;
};

}  // namespace dwdp
