// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include "cuda/range.h"
#include "memory/driver.h"

namespace dwdp {

// Addresses for a view of GPU memory.
class CudaReservation : public Reservation {
 public:
  CudaReservation(std::shared_ptr<const CudaDevice> device, std::size_t num_bytes)
      : device_(device), range_(std::move(device), num_bytes) {}

  std::byte* address() const override { return range_.address(); }
  std::size_t num_bytes() const override { return range_.num_bytes(); }
  void Map(std::size_t offset, const Allocation& allocation) override;
  void MapPrivate(std::size_t offset, std::size_t num_bytes) override;
  std::string Protect() override { return range_.MakeReadOnly(); }
  void Populate() override {}  // cuMemMap has filled the page tables

 private:
  std::shared_ptr<const CudaDevice> device_;
  CudaRange range_;
};

}  // namespace dwdp
