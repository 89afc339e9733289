// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// A CUDA driver on host memory, for tests: the entry points that dwdp uses, stricter than NVIDIA's.
//
// * What is given to a stream runs later, in an order that a seed picks among those that events
//   allow: a missing wait shows as wrong data.
// * Two accesses to the same physical bytes that no event orders are a violation, even when the
//   data came out right.
// * Any call can be made to fail. GPUs run out of memory, and may lack peer access.
// * A kernel whose memory is gone when it runs breaks its GPU's context: see fake_cuda_break.
// * A call that waits holds up no other thread's calls.
// * FAKE_CUDA_RUN_AT_ONCE and FAKE_CUDA_GRANULARITY (bytes) in the environment are as if the first
//   call had been the function of that name.
// * FAKE_CUDA_FABRIC names the directory that stands for an NVLink domain: processes that share it
//   share memory by fabric handles. Without one they are not permitted.
//
// Below: what tests say to it. Texts are one finding a line, empty when there is none, and valid
// until the next call.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {
// Forgets faults, counts and violations; what is allocated stays. Orders follow the seed.
void fake_cuda_reset(std::uint64_t seed);
// Everything runs at once, in the order of the calls: for a CPU that reads what streams write.
void fake_cuda_run_at_once(bool at_once);
void fake_cuda_set_granularity(std::size_t num_bytes);
// What cuMemGetAllocationGranularity recommends; the other is the least, which always works.
void fake_cuda_set_recommended_granularity(std::size_t num_bytes);
// How much a GPU can still give; 80 GiB in all until then.
void fake_cuda_set_capacity(int gpu, std::size_t num_bytes);
// From now on a GPU can't read the memory of another one of this machine.
void fake_cuda_deny_peer_access(int reader, int owner);
// cuMemSetAccess refuses own, imported and private mappings in one call.
void fake_cuda_refuse_mixed_access();
// cuMemSetAccess refuses to make read-only what may be written.
void fake_cuda_refuse_downgraded_access();
// From now on all calls in a GPU's context return `result`, as after a kernel that failed.
void fake_cuda_break(int gpu, int result);
// The nth work whose name begins so, from now on, doesn't end: copies are named by their calls.
void fake_cuda_hang(const char* name, int nth);
void fake_cuda_end_hangs();
// Memory that other processes could be given, alive in this process.
int fake_cuda_num_exportable();
void fake_cuda_set_version(int version);
void fake_cuda_set_attribute(int attribute, int value);
// The nth call of a symbol from now on, counted from 1, returns `result` and does nothing.
void fake_cuda_fail(const char* symbol, int nth, int result);
// Calls since the reset.
int fake_cuda_calls(const char* symbol);
const char* fake_cuda_violations();
const char* fake_cuda_leaks();

// Kernels: one copies device memory to `into`, which isn't the device's, one fills it.
int fake_cuda_read(void* stream, std::uint64_t address, std::size_t num_bytes, void* into);
int fake_cuda_fill(void* stream, std::uint64_t address, std::size_t num_bytes, unsigned char value);

void* fake_cuda_make_stream(int gpu);
void fake_cuda_destroy_stream(void* stream);
int fake_cuda_synchronize(void* stream);
// mode: a CUstreamCaptureMode, as a rule that for all threads.
int fake_cuda_begin_capture(void* stream, int mode = 0);
// Null when the capture was broken.
void* fake_cuda_end_capture(void* stream);
int fake_cuda_launch(void* graph, void* stream);
void fake_cuda_destroy_graph(void* graph);
}
