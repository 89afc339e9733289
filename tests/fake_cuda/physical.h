// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// Physical memory of a GPU or of the host, which is a file here, and its way to other processes.
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
  int gpu;           // its ordinal in this process, or kHost; -1: hidden, or of another host
  bool is_imported = true;
  unsigned handle_types = 0;  // bits of CUmemAllocationHandleType: by which it may be exported
  std::string fabric_file{};  // the path of its file in the directory of the NVLink domain, if any
  ~Physical();
};

using PhysicalPtr = std::shared_ptr<const Physical>;

// How many GPUs CUDA_VISIBLE_DEVICES names; all of them if it isn't set.
int NumVisibleGpus();

CUresult MakePhysical(std::size_t num_bytes, int gpu, unsigned handle_types, PhysicalPtr* made);
CUresult ImportPhysical(int fd, PhysicalPtr* imported);
CUresult ImportPhysical(const CUmemFabricHandle& fabric, PhysicalPtr* imported);
CUresult ExportPhysical(const Physical& physical, int* fd);
CUresult ExportPhysical(const Physical& physical, CUmemFabricHandle* fabric);

}  // namespace fake_cuda
