// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "device.h"

#include <cstdint>
#include <numeric>
#include <vector>

namespace fake_cuda {
namespace {

constexpr std::uintptr_t kFirstContext = 0xc0;
thread_local std::vector<int> current;

}  // namespace

bool Device::Take(int place, std::size_t wanted) {
  if (wanted > num_bytes[place] - num_used_bytes[place]) return false;
  num_used_bytes[place] += wanted;
  return true;
}

void Device::Reset() {
  version = 13000;
  attributes.clear();
  num_bytes = {kUsualBytes, kUsualBytes, kUsualBytes};
  apart.clear();
  refuses_mixed_access = refuses_downgraded_access = false;
  broken = {};
}

std::string Device::leaks() const {
  std::string text;
  const int all = std::accumulate(num_retained.begin(), num_retained.end(), 0);
  if (all != 0) text += std::to_string(all) + " retained contexts\n";
  for (int place = 0; place <= kHost; ++place) {
    if (num_used_bytes[place] == 0) continue;
    const std::string name = place == kHost ? "the host" : "GPU " + std::to_string(place);
    text += std::to_string(num_used_bytes[place]) + " bytes of " + name + "\n";
  }
  if (num_pushed != 0) text += std::to_string(num_pushed) + " pushed contexts\n";
  return text;
}

Device& device() {
  static Device one;
  return one;
}

CUcontext ContextOf(int gpu) { return reinterpret_cast<CUcontext>(kFirstContext + gpu); }

int GpuOf(CUcontext context) {
  const auto gpu = reinterpret_cast<std::uintptr_t>(context) - kFirstContext;
  return gpu < Device::kNumGpus ? static_cast<int>(gpu) : -1;
}

int CurrentGpu() { return current.empty() ? -1 : current.back(); }

void Push(int gpu) {
  current.push_back(gpu);
  ++device().num_pushed;
}

int Pop() {
  const int gpu = CurrentGpu();
  if (gpu < 0) return gpu;
  current.pop_back();
  --device().num_pushed;
  return gpu;
}

std::recursive_mutex& lock() {
  static std::recursive_mutex one;
  return one;
}

}  // namespace fake_cuda
