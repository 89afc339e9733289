// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The machine: its GPUs and what they can do.
#pragma once

#include <cuda.h>

#include <array>
#include <map>
#include <mutex>
#include <string>

namespace fake_cuda {

struct Device {
  static constexpr int kNumGpus = 2;

  int version = 13000;
  std::map<int, int> attributes;                // by CUdevice_attribute; others are 1
  std::array<int, kNumGpus> num_retained = {};  // of each primary context
  int num_pushed = 0;                           // on all threads

  int attribute(int which) const {
    const auto found = attributes.find(which);
    return found == attributes.end() ? 1 : found->second;
  }
  std::string leaks() const;
};

Device& device();

// The primary context of a GPU, and back.
CUcontext ContextOf(int gpu);
int GpuOf(CUcontext context);
// Of the context that is current on this thread; -1: none is.
int CurrentGpu();
void Push(int gpu);
// -1 when there is none.
int Pop();

// Held by every entry point.
std::recursive_mutex& lock();

}  // namespace fake_cuda
