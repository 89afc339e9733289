// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// Streams and events. Work runs late, and in any order that events allow.
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

// A vector clock: for each stream the number of its last item that comes before a point in time.
using Clock = std::map<CUstream, std::uint64_t>;

struct Access {
  CUdeviceptr start;
  std::size_t num_bytes;
  bool writes;

  // Whether both accesses touch a byte of physical memory that at least one of them writes.
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

// A graph capture. There is at most one at a time.
struct Capture {
  std::uint64_t number;
  CUstream origin;
  CUstreamCaptureMode mode;
  std::thread::id thread;  // the thread that began the capture
  bool is_broken = false;
  std::map<CUstream, bool> is_joined;  // for each stream that events drew into the capture
  Graph graph;
};

class Timeline {
 public:
  // The handle that stands for the null stream of a GPU's context.
  static CUstream NullStream(int gpu);
  CUresult Create(CUstream* stream, int gpu);
  CUresult Destroy(CUstream stream);
  CUresult Create(CUevent* event, int gpu, bool has_timing);
  CUresult Destroy(CUevent event);

  CUresult Enqueue(CUstream stream, Work work);
  // Enqueues work in a random order. A batch whose order matters is a violation.
  CUresult EnqueueBatch(CUstream stream, std::vector<Work> batch);
  CUresult Record(CUevent event, CUstream stream);
  CUresult Wait(CUstream stream, CUevent event);
  CUresult Synchronize(CUstream stream);
  // Waits for all streams of a GPU.
  CUresult SynchronizeAll(int gpu);
  CUresult Query(CUevent event);
  // The time between two events that have happened. Each piece of work takes a microsecond.
  CUresult Elapsed(float* milliseconds, CUevent start, CUevent end) const;

  CUresult BeginCapture(CUstream stream, CUstreamCaptureMode mode);
  CUresult EndCapture(CUstream stream, std::unique_ptr<Graph>* graph);
  bool IsCapturing(CUstream stream) const;
  // Whether `stream` is a null stream whose use is forbidden by a capture of its context.
  bool IsBarred(CUstream stream) const;
  CUresult Launch(const Graph& graph, CUstream stream);
  // To be called before a call that might wait for captured work, or that allocates. If the mode of
  // a capture forbids such calls to this thread, it breaks the capture and returns an error.
  CUresult RefuseUnsafe();
  // Sets the capture mode of this thread, and hands out the previous one.
  static void ExchangeMode(CUstreamCaptureMode* mode);

  // From now on the `nth` piece of work whose name begins with `name` doesn't end, and neither does
  // any work that comes after it.
  void Hang(const std::string& name, int nth);
  void EndHangs();

  // To be called before memory is unmapped. It is a violation if waiting work uses the memory.
  void CheckUnused(CUdeviceptr start, std::size_t num_bytes, const std::string& why) const;
  void Reset(std::uint64_t seed);
  void RunAtOnce(bool at_once) { runs_at_once_ = at_once; }
  std::string leaks() const;
  // Whether the context of a GPU has events that weren't destroyed.
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
    std::vector<std::uint64_t> ended_at{};  // when each item ended that has run
    int num_waiting_threads = 0;
  };
  struct Event {
    int gpu;
    bool has_timing;
    bool is_recorded = false;
    Clock clock{};
    std::uint64_t recorded_at = 0;
    CUstream captured_in = nullptr;
    std::uint64_t capture = 0;  // the number of that capture
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
  // Runs work until all that `target` covers has run, or until nothing is left that can run.
  void RunUntil(const Clock& target);
  void Run(Stream& stream);
  // Runs all that `target` covers. Blocks while some of it hangs; other threads' calls go on.
  void RunToTheEnd(const Clock& target);
  CUresult WaitFor(CUstream stream, const Clock& target);
  // The first stream in `order` whose next item can run, or null.
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
