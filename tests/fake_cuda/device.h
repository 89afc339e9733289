// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The machine: its GPUs, what they can do, and what has become of them.
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
  static constexpr int kHost = kNumGpus;  // where memory is of the host, all of it of node 0
  static constexpr std::size_t kUsualBytes = std::size_t{80} << 30;

  int version = 13000;
  std::map<int, int> attributes;                // by CUdevice_attribute; others are 1, numbers 0
  std::array<int, kNumGpus> num_retained = {};  // of each primary context
  int num_pushed = 0;                           // on all threads
  // By place: a GPU, or the host.
  std::array<std::size_t, kNumGpus + 1> num_bytes = {kUsualBytes, kUsualBytes, kUsualBytes};
  std::array<std::size_t, kNumGpus + 1> num_used_bytes = {};  // by memory that this process made
  std::set<std::pair<int, int>> apart;                        // (reader, owner) without peer access
  bool refuses_mixed_access = false;
  bool refuses_downgraded_access = false;
  // By GPU: what calls in its context return since a kernel of it failed.
  std::array<CUresult, kNumGpus> broken = {};

  int attribute(int which) const {
    const auto found = attributes.find(which);
    if (found != attributes.end()) return found->second;
    return which == CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID ? 0 : 1;
  }
  void Initialise() { process_ = getpid(); }
  // Not before cuInit, and not in a process that was forked after it.
  bool is_initialised() const { return process_ == getpid(); }
  bool was_forked() const { return process_ != 0 && !is_initialised(); }
  bool CanRead(int reader, int owner) const { return !apart.contains({reader, owner}); }
  // Takes memory of a place; false when there isn't so much left.
  bool Take(int place, std::size_t num_bytes);
  // Back to what tests begin with; memory in use stays so.
  void Reset();
  std::string leaks() const;

 private:
  pid_t process_ = 0;
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

// Held by every entry point, but not while one waits for work that hangs.
std::recursive_mutex& lock();

}  // namespace fake_cuda
