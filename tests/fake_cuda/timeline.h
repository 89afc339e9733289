// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// Streams and events: work runs late, in any order that events allow.
#pragma once

#include <cuda.h>

#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace fake_cuda {

// How far each stream had come; what a clock covers happens before.
using Clock = std::map<CUstream, std::uint64_t>;

struct Access {
  CUdeviceptr start;
  std::size_t num_bytes;
  bool writes;

  // Whether the two touch a byte of physical memory that one of them writes.
  bool Conflicts(const Access& other, int gpu) const;
};

struct Work {
  std::string what;
  std::vector<Access> accesses;
  std::function<void()> run;
};

struct Graph {
  std::vector<Work> work;
};

// One at a time.
struct Capture {
  std::uint64_t number;
  CUstream origin;
  CUstreamCaptureMode mode;
  std::thread::id thread;  // that began it
  bool is_broken = false;
  std::map<CUstream, bool> is_joined;  // streams that events drew into it
  Graph graph;
};

class Timeline {
 public:
  // What stands for the null stream, of the context of a GPU.
  static CUstream NullStream(int gpu);
  CUresult Create(CUstream* stream, int gpu);
  CUresult Destroy(CUstream stream);
  CUresult Create(CUevent* event, int gpu, bool has_timing);
  CUresult Destroy(CUevent event);

  CUresult Enqueue(CUstream stream, Work work);
  // In any order; a violation if that matters.
  CUresult EnqueueBatch(CUstream stream, std::vector<Work> batch);
  CUresult Record(CUevent event, CUstream stream);
  CUresult Wait(CUstream stream, CUevent event);
  CUresult Synchronize(CUstream stream);
  // All streams of a GPU.
  CUresult SynchronizeAll(int gpu);
  CUresult Query(CUevent event);
  // Between two events that have happened. All work takes a microsecond.
  CUresult Elapsed(float* milliseconds, CUevent start, CUevent end) const;

  CUresult BeginCapture(CUstream stream, CUstreamCaptureMode mode);
  CUresult EndCapture(CUstream stream, std::unique_ptr<Graph>* graph);
  bool IsCapturing(CUstream stream) const;
  // Whether it is a null stream that a capture of its context forbids to use.
  bool IsBarred(CUstream stream) const;
  CUresult Launch(const Graph& graph, CUstream stream);
  // Before a call that could wait for captured work, or allocates: a capture whose mode forbids it
  // to this thread is broken by it.
  CUresult RefuseUnsafe();
  // Sets this thread's part in that, and hands out what it was.
  static void ExchangeMode(CUstreamCaptureMode* mode);

  // The nth work of that name from now on doesn't end, nor does what comes after it.
  void Hang(const std::string& name, int nth);
  void EndHangs();

  // Memory goes: a violation when work that waits still uses it.
  void CheckUnused(CUdeviceptr start, std::size_t num_bytes, const std::string& why) const;
  void Reset(std::uint64_t seed);
  void RunAtOnce(bool at_once) { runs_at_once_ = at_once; }
  std::string leaks() const;
  // Whether events live in the context of a GPU.
  bool HasEvents(int gpu) const;

 private:
  struct Item {
    std::uint64_t number;  // in its stream, from 1
    Clock after;
    Work work;
    bool hangs = false;
  };
  struct ToHang {
    std::string name;
    int nth;
  };
  struct Stream {
    int gpu = 0;
    Clock clock{};  // what comes before the next item
    std::uint64_t num_enqueued = 0;
    std::uint64_t num_run = 0;
    std::deque<Item> waiting{};
    std::vector<std::uint64_t> ended_at{};  // of each item that has run
    int num_waiting_threads = 0;
  };
  struct Event {
    int gpu;
    bool has_timing;
    bool is_recorded = false;
    Clock clock{};
    std::uint64_t recorded_at = 0;
    CUstream captured_in = nullptr;
    std::uint64_t capture = 0;  // its number
  };
  static std::map<CUstream, Stream> NullStreams();
  struct Past {
    std::size_t start, end;
    CUstream stream;
    std::uint64_t number;
    bool writes;
    std::string what;
  };

  static bool IsNull(CUstream stream);
  CUresult RefuseWhileCapturing(CUstream stream);
  // Whether an event was last recorded in a capture that is over.
  bool IsOfAnEndedCapture(const Event& event) const;
  bool CheckAccess(int gpu, const Work& work) const;
  void CheckRaces(CUstream stream, const Item& item);
  // Runs what can run of it: all but what hangs, and what comes after that.
  void RunUntil(const Clock& target);
  void Run(Stream& stream);
  // Blocks while some of it hangs; other threads' calls go on meanwhile.
  void RunToTheEnd(const Clock& target);
  CUresult WaitFor(CUstream stream, const Clock& target);
  // Null when none is ready.
  CUstream PickReady(const std::vector<CUstream>& order);
  bool IsReady(const Stream& stream) const;
  bool HasRun(const Clock& clock) const;
  Clock Everything() const;
  Clock EverythingOf(int gpu) const;
  bool MustHang(const std::string& name);
  std::uint64_t EndOf(const Clock& clock) const;

  std::map<CUstream, Stream> streams_ = NullStreams();
  std::map<CUevent, Event> events_;
  std::map<std::uint64_t, std::vector<Past>> past_;  // by physical memory
  Clock host_;                                       // what the host has waited for
  std::unique_ptr<Capture> capture_;
  std::uint64_t num_captures_ = 0;
  std::optional<ToHang> to_hang_;
  std::condition_variable_any hangs_ended_;
  std::uint64_t num_run_ = 0;
  std::mt19937_64 random_;
  std::uintptr_t last_name_ = 0x1000;
  bool runs_at_once_ = std::getenv("FAKE_CUDA_RUN_AT_ONCE") != nullptr;
};

Timeline& timeline();

}  // namespace fake_cuda
