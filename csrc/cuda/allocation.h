// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <optional>
#include <utility>

#include "cuda/handle.h"
#include "cuda/range.h"
#include "memory/driver.h"

namespace dwdp {

// Memory that one GPU can read: allocated by this process, or imported from a peer.
class CudaAllocation : public Allocation {
 public:
  // Allocates memory, zeroed and open for filling.
  static std::unique_ptr<CudaAllocation> Create(const std::shared_ptr<const CudaDevice>& device,
                                                std::size_t num_bytes, MemoryUse use);
  static std::unique_ptr<CudaAllocation> Import(const std::shared_ptr<const CudaDevice>& device,
                                                ShareableHandle handle, std::size_t num_bytes);

  std::size_t num_bytes() const override { return num_bytes_; }
  std::byte* staging() const override { return staging_ ? staging_->address() : nullptr; }
  void Seal() override { staging_.reset(); }
  // CUDA can't forbid a peer to map memory for writing; dwdp maps it read-only.
  bool is_write_sealed() const override { return false; }
  ShareableHandle Export(HandleType type) const override { return handle_.Export(type); }

  CUmemGenericAllocationHandle handle() const { return handle_.get(); }

 private:
  template <typename... Source>
  CudaAllocation(const std::shared_ptr<const CudaDevice>& device, std::size_t num_bytes,
                 Source&&... source)
      : handle_(device, std::forward<Source>(source)...), num_bytes_(num_bytes) {}

  CudaHandle handle_;
  std::size_t num_bytes_;
  std::optional<CudaRange> staging_;  // the writable mapping; gone once sealed
};

}  // namespace dwdp
