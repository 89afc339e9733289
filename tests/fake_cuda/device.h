// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The machine: its GPUs and what they can do.
#pragma once

#include <cuda.h>

#include <map>
#include <mutex>
#include <string>

namespace fake_cuda {

struct Device {
  static constexpr int kNumGpus = 2;

  int version = 13000;
  std::map<int, int> attributes;  // by CUdevice_attribute; others are 1
  int num_retained = 0;           // of the primary contexts
  int num_pushed = 0;

  int attribute(int which) const {
    const auto found = attributes.find(which);
    return found == attributes.end() ? 1 : found->second;
  }
  std::string leaks() const;
};

Device& device();
// Held by every entry point.
std::recursive_mutex& lock();

}  // namespace fake_cuda
