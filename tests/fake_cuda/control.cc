// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The functions by which tests control the driver.
#include <cstring>

#include "device.h"
#include "fake_cuda.h"
#include "findings.h"
#include "memory.h"
#include "timeline.h"

namespace {

using namespace fake_cuda;

CUstream Stream(void* handle) { return static_cast<CUstream>(handle); }

const char* Keep(std::string text) {
  static std::string kept;
  kept = std::move(text);
  return kept.c_str();
}

}  // namespace

#define LOCKED const std::lock_guard guard(fake_cuda::lock())

void fake_cuda_reset(std::uint64_t seed) {
  LOCKED;
  findings().Reset();
  timeline().Reset(seed);
  timeline().RunAtOnce(false);
  memory().recommended_granularity = 0;
  device().Reset();
}

void fake_cuda_run_at_once(bool at_once) {
  LOCKED;
  timeline().RunAtOnce(at_once);
}

void fake_cuda_set_granularity(std::size_t num_bytes) {
  LOCKED;
  memory().granularity = num_bytes;
}

void fake_cuda_set_recommended_granularity(std::size_t num_bytes) {
  LOCKED;
  memory().recommended_granularity = num_bytes;
}

void fake_cuda_set_capacity(int gpu, std::size_t num_bytes) {
  LOCKED;
  device().num_bytes[gpu] = device().num_used_bytes[gpu] + num_bytes;
}

void fake_cuda_deny_peer_access(int reader, int owner) {
  LOCKED;
  device().apart.emplace(reader, owner);
}

void fake_cuda_refuse_mixed_access() {
  LOCKED;
  device().refuses_mixed_access = true;
}

void fake_cuda_refuse_downgraded_access() {
  LOCKED;
  device().refuses_downgraded_access = true;
}

void fake_cuda_break(int gpu, int result) {
  LOCKED;
  device().broken[gpu] = static_cast<CUresult>(result);
}

void fake_cuda_hang(const char* name, int nth) {
  LOCKED;
  timeline().Hang(name, nth);
}

void fake_cuda_end_hangs() {
  LOCKED;
  timeline().EndHangs();
}

int fake_cuda_num_exportable() {
  LOCKED;
  return memory().num_exportable();
}

void fake_cuda_set_version(int version) {
  LOCKED;
  device().version = version;
}

void fake_cuda_set_attribute(int attribute, int value) {
  LOCKED;
  device().attributes[attribute] = value;
}

void fake_cuda_fail(const char* symbol, int nth, int result) {
  LOCKED;
  findings().Fail(symbol, nth, static_cast<CUresult>(result));
}

void fake_cuda_delay(const char* symbol, int milliseconds) {
  LOCKED;
  findings().Delay(symbol, milliseconds);
}

int fake_cuda_calls(const char* symbol) {
  LOCKED;
  return findings().calls(symbol);
}

const char* fake_cuda_violations() {
  LOCKED;
  return Keep(findings().violations());
}

const char* fake_cuda_leaks() {
  LOCKED;
  return Keep(memory().leaks() + timeline().leaks() + device().leaks());
}

int fake_cuda_read(void* stream, std::uint64_t address, std::size_t num_bytes, void* into) {
  LOCKED;
  return timeline().Enqueue(Stream(stream), {"a kernel's read", {{address, num_bytes, false}}, [=] {
                                               std::memcpy(into, reinterpret_cast<void*>(address),
                                                           num_bytes);
                                             }});
}

int fake_cuda_fill(void* stream, std::uint64_t address, std::size_t num_bytes,
                   unsigned char value) {
  LOCKED;
  return timeline().Enqueue(Stream(stream), {"a kernel's write", {{address, num_bytes, true}}, [=] {
                                               std::memset(reinterpret_cast<void*>(address), value,
                                                           num_bytes);
                                             }});
}

void* fake_cuda_make_stream(int gpu) {
  LOCKED;
  CUstream made = nullptr;
  timeline().Create(&made, gpu);
  return made;
}

void fake_cuda_destroy_stream(void* stream) {
  LOCKED;
  timeline().Destroy(Stream(stream));
}

int fake_cuda_synchronize(void* stream) {
  LOCKED;
  return timeline().Synchronize(Stream(stream));
}

int fake_cuda_begin_capture(void* stream, int mode) {
  LOCKED;
  return timeline().BeginCapture(Stream(stream), static_cast<CUstreamCaptureMode>(mode));
}

void* fake_cuda_end_capture(void* stream) {
  LOCKED;
  std::unique_ptr<Graph> graph;
  timeline().EndCapture(Stream(stream), &graph);
  return graph.release();
}

int fake_cuda_launch(void* graph, void* stream) {
  LOCKED;
  return timeline().Launch(*static_cast<Graph*>(graph), Stream(stream));
}

void fake_cuda_destroy_graph(void* graph) { delete static_cast<Graph*>(graph); }
