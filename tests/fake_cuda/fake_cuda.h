// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// A CUDA driver on host memory, for tests: the entry points that dwdp uses, stricter than NVIDIA's.
//
// * Work in a stream runs later, in an order that a seed picks among those that events allow, so
//   that a missing wait shows as wrong data.
// * Two accesses to the same physical bytes that no event orders are a violation, even when the
//   data came out right.
// * Any call can be made to fail. GPUs run out of memory, and may lack peer access.
// * A kernel whose memory is gone when it runs breaks its GPU's context: see fake_cuda_break.
// * A call that waits holds up no other thread's calls.
// * The environment variables FAKE_CUDA_RUN_AT_ONCE and FAKE_CUDA_GRANULARITY (bytes) act like a
//   first call of fake_cuda_run_at_once and of fake_cuda_set_granularity.
// * The environment variable FAKE_CUDA_FABRIC names a directory that stands for an NVLink domain:
//   processes with the same directory can share memory by fabric handles. Without it every use of a
//   fabric handle is refused.
//
// Tests control the driver by the functions below. A text that is returned has one finding per
// line, is empty if there is none, and is valid until the next call that returns a text.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {
// Forgets faults, counts and violations, but no allocation. `seed` picks the order of the work.
void fake_cuda_reset(std::uint64_t seed);
// With `at_once` all work runs in the call that enqueues it, so that the CPU can read what streams
// write.
void fake_cuda_run_at_once(bool at_once);
void fake_cuda_set_granularity(std::size_t num_bytes);
// The granularity that cuMemGetAllocationGranularity recommends. fake_cuda_set_granularity sets the
// minimum, which is all that memory needs.
void fake_cuda_set_recommended_granularity(std::size_t num_bytes);
// Sets how many more bytes a GPU can give. Before this call a GPU has 80 GiB in all.
void fake_cuda_set_capacity(int gpu, std::size_t num_bytes);
// From now on GPU `reader` can't access the memory of GPU `owner`.
void fake_cuda_deny_peer_access(int reader, int owner);
// From now on cuMemSetAccess refuses a range that mixes own, imported and private mappings.
void fake_cuda_refuse_mixed_access();
// From now on cuMemSetAccess refuses to make a writable mapping read-only.
void fake_cuda_refuse_downgraded_access();
// From now on all calls in a GPU's context return `result`, as after a kernel that failed.
void fake_cuda_break(int gpu, int result);
// From now on the `nth` piece of work whose name begins with `name` doesn't end. A copy has the
// name of its call, a kernel is "a kernel's read" or "a kernel's write".
void fake_cuda_hang(const char* name, int nth);
void fake_cuda_end_hangs();
// The number of allocations of this process that can be exported and are still in use.
int fake_cuda_num_exportable();
void fake_cuda_set_version(int version);
void fake_cuda_set_attribute(int attribute, int value);
// From now on the `nth` call of a symbol, counted from 1, returns `result` and does nothing.
void fake_cuda_fail(const char* symbol, int nth, int result);
// From now on each call of a symbol takes so long, and holds up no other thread's calls.
void fake_cuda_delay(const char* symbol, int milliseconds);
// The number of calls of a symbol since the reset.
int fake_cuda_calls(const char* symbol);
// The rules that were broken since the reset.
const char* fake_cuda_violations();
// The objects that this process has not released.
const char* fake_cuda_leaks();

// Enqueue a kernel that copies device memory to `into`, which is host memory, or one that fills
// device memory. They return a CUresult.
int fake_cuda_read(void* stream, std::uint64_t address, std::size_t num_bytes, void* into);
int fake_cuda_fill(void* stream, std::uint64_t address, std::size_t num_bytes, unsigned char value);

void* fake_cuda_make_stream(int gpu);
void fake_cuda_destroy_stream(void* stream);
int fake_cuda_synchronize(void* stream);
// `mode` is a CUstreamCaptureMode; 0 is CU_STREAM_CAPTURE_MODE_GLOBAL.
int fake_cuda_begin_capture(void* stream, int mode = 0);
// Returns a graph, or null if the capture was broken.
void* fake_cuda_end_capture(void* stream);
int fake_cuda_launch(void* graph, void* stream);
void fake_cuda_destroy_graph(void* graph);
}
