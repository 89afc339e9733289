// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// Physical memory of a GPU, as a memory file, and how it gets from process to process.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <string>

namespace fake_cuda {

// Alive while a handle or a mapping holds it.
struct Physical {
  int fd;
  std::size_t num_bytes;
  std::uint64_t id;  // the same in every process
  int gpu;           // its ordinal here, or kHost; -1: hidden, or another host's
  bool is_imported = true;
  unsigned handle_types = 0;  // CUmemAllocationHandleType that it may be exported as
  std::string fabric_file{};  // of the exporter, in the directory of the domain
  ~Physical();
};

using PhysicalPtr = std::shared_ptr<const Physical>;

CUresult MakePhysical(std::size_t num_bytes, int gpu, unsigned handle_types, PhysicalPtr* made);
CUresult ImportPhysical(int fd, PhysicalPtr* imported);
CUresult ImportPhysical(const CUmemFabricHandle& fabric, PhysicalPtr* imported);
CUresult ExportPhysical(const Physical& physical, int* fd);
CUresult ExportPhysical(const Physical& physical, CUmemFabricHandle* fabric);

}  // namespace fake_cuda
