// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include "host/allocation.h"
#include "memory/driver.h"

namespace dwdp {

// Host memory shared between the processes of one host through sealed memory files.
class HostDriver : public MemoryDriver {
 public:
  explicit HostDriver(HostOptions options) : options_(std::move(options)) {}

  std::string kind() const override { return "host"; }
  int gpu() const override { return kNoGpu; }
  std::size_t granularity() const override { return PageBytes(); }
  HandleObstacles obstacles() const override {
    return {{HandleType::kFileDescriptor, std::nullopt}};
  }
  std::unique_ptr<Allocation> Allocate(std::size_t num_bytes, std::size_t view_offset,
                                       MemoryUse use) override;
  std::unique_ptr<Allocation> Import(ShareableHandle handle, std::size_t num_bytes,
                                     std::size_t view_offset) override;
  std::unique_ptr<Reservation> Reserve(std::size_t num_bytes) override;
  void Copy(void* destination, const void* source, std::size_t num_bytes) override;

 private:
  HostOptions options_;
};

}  // namespace dwdp
