// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The machine of the fake driver: its GPUs, what they can do, and their state.
#pragma once

#include <cuda.h>
#include <unistd.h>

#include <array>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>

namespace fake_cuda {

struct Device {
  static constexpr int kNumGpus = 2;
  static constexpr int kHost = kNumGpus;  // the place of the host's memory, all on NUMA node 0
  static constexpr std::size_t kUsualBytes = std::size_t{80} << 30;

  int version = 13000;
  std::map<int, int> attributes;                // set by a test, by CUdevice_attribute
  std::array<int, kNumGpus> num_retained = {};  // by primary context
  int num_pushed = 0;                           // contexts pushed, on all threads
  // Capacity and use by place, which is a GPU or kHost.
  std::array<std::size_t, kNumGpus + 1> num_bytes = {kUsualBytes, kUsualBytes, kUsualBytes};
  std::array<std::size_t, kNumGpus + 1> num_used_bytes = {};  // allocated by this process
  std::set<std::pair<int, int>> apart;                        // (reader, owner) without peer access
  bool refuses_mixed_access = false;
  bool refuses_downgraded_access = false;
  // By GPU: the error that every call in its context returns since a kernel failed, or success.
  std::array<CUresult, kNumGpus> broken = {};

  // 1 unless a test set it, because most attributes are abilities; the NUMA node is 0.
  int attribute(int which) const {
    const auto found = attributes.find(which);
    if (found != attributes.end()) return found->second;
    return which == CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID ? 0 : 1;
  }
  void Initialise() { process_ = getpid(); }
  // False before cuInit, and in a process that was forked after it.
  bool is_initialised() const { return process_ == getpid(); }
  bool was_forked() const { return process_ != 0 && !is_initialised(); }
  bool CanRead(int reader, int owner) const { return !apart.contains({reader, owner}); }
  // Counts memory of a place as used. Returns false, and counts nothing, if too little is left.
  bool Take(int place, std::size_t num_bytes);
  // Restores the state with which tests begin, but for contexts and memory in use.
  void Reset();
  std::string leaks() const;

 private:
  pid_t process_ = 0;
};

Device& device();

// The primary context of a GPU, and the GPU of a context (-1 for anything else).
CUcontext ContextOf(int gpu);
int GpuOf(CUcontext context);
// The GPU whose context is current on this thread, or -1.
int CurrentGpu();
void Push(int gpu);
// Returns the GPU whose context was current, or -1 if none was.
int Pop();

// Every entry point holds this lock, except while it waits for work that hangs.
std::recursive_mutex& lock();

}  // namespace fake_cuda
