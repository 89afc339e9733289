// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "timeline.h"

#include <algorithm>
#include <utility>

#include "device.h"
#include "findings.h"
#include "memory.h"

namespace fake_cuda {
namespace {

void Join(Clock& clock, const Clock& other) {
  for (const auto& [stream, number] : other) clock[stream] = std::max(clock[stream], number);
}

bool Covers(const Clock& clock, CUstream stream, std::uint64_t number) {
  const auto found = clock.find(stream);
  return found != clock.end() && found->second >= number;
}

CUresult Refuse(const std::string& text) {
  findings().Violate(text);
  return CUDA_ERROR_INVALID_VALUE;
}

constexpr std::uintptr_t kFirstNullStream = 0x100;
thread_local CUstreamCaptureMode own_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

}  // namespace

bool Access::Conflicts(const Access& other, int gpu) const {
  if (!writes && !other.writes) return false;
  std::vector<Segment> mine, theirs;
  memory().Resolve(start, num_bytes, gpu, writes, &mine);
  memory().Resolve(other.start, other.num_bytes, gpu, other.writes, &theirs);
  for (const Segment& a : mine) {
    for (const Segment& b : theirs) {
      if (a.physical == b.physical && a.start < b.start + b.num_bytes &&
          b.start < a.start + a.num_bytes) {
        return true;
      }
    }
  }
  return false;
}

CUstream Timeline::NullStream(int gpu) {
  return reinterpret_cast<CUstream>(kFirstNullStream + gpu);
}

std::map<CUstream, Timeline::Stream> Timeline::NullStreams() {
  std::map<CUstream, Stream> made;
  for (int gpu = 0; gpu < Device::kNumGpus; ++gpu) made[NullStream(gpu)].gpu = gpu;
  return made;
}

CUresult Timeline::Create(CUstream* stream, int gpu) {
  *stream = reinterpret_cast<CUstream>(++last_name_);
  streams_[*stream].gpu = gpu;
  return CUDA_SUCCESS;
}

CUresult Timeline::Destroy(CUstream stream) {
  if (IsNull(stream) || !streams_.contains(stream)) return Refuse("cuStreamDestroy of no stream");
  if (streams_[stream].num_waiting_threads > 0) {
    return Refuse("cuStreamDestroy of a stream that another thread waits for");
  }
  RunUntil({{stream, streams_[stream].num_enqueued}});
  streams_.erase(stream);
  for (auto& [id, accesses] : past_) {
    std::erase_if(accesses, [&](const Past& past) { return past.stream == stream; });
  }
  return CUDA_SUCCESS;
}

CUresult Timeline::Create(CUevent* event, int gpu, bool has_timing) {
  *event = reinterpret_cast<CUevent>(++last_name_);
  events_.insert_or_assign(*event, Event{.gpu = gpu, .has_timing = has_timing});
  return CUDA_SUCCESS;
}

CUresult Timeline::Destroy(CUevent event) {
  return events_.erase(event) ? CUDA_SUCCESS : Refuse("cuEventDestroy of no event");
}

CUresult Timeline::Enqueue(CUstream stream, Work work) {
  if (!streams_.contains(stream)) return Refuse(work.what + " on a stream that isn't there");
  if (IsCapturing(stream)) {
    if (stream != capture_->origin) capture_->is_joined[stream] = false;
    capture_->graph.work.push_back(std::move(work));
    return CUDA_SUCCESS;
  }
  if (IsBarred(stream)) {
    capture_->is_broken = true;
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  }
  Stream& on = streams_[stream];
  if (const CUresult broken = device().broken[on.gpu]) return broken;
  if (!CheckAccess(on.gpu, work)) return CUDA_ERROR_INVALID_VALUE;
  Join(on.clock, host_);
  const bool hangs = MustHang(work.what);
  Item item{++on.num_enqueued, on.clock, std::move(work), hangs};
  on.clock[stream] = item.number;
  CheckRaces(stream, item);
  on.waiting.push_back(std::move(item));
  if (runs_at_once_) RunUntil(Everything());
  return CUDA_SUCCESS;
}

CUresult Timeline::EnqueueBatch(CUstream stream, std::vector<Work> batch) {
  if (!streams_.contains(stream)) return Refuse("a batch on a stream that isn't there");
  for (auto one = batch.begin(); one != batch.end(); ++one) {
    for (auto other = std::next(one); other != batch.end(); ++other) {
      for (const Access& a : one->accesses) {
        for (const Access& b : other->accesses) {
          if (a.Conflicts(b, streams_[stream].gpu)) return Refuse("a batch whose order matters");
        }
      }
    }
  }
  std::ranges::shuffle(batch, random_);
  for (Work& work : batch) {
    if (const CUresult refused = Enqueue(stream, std::move(work))) return refused;
  }
  return CUDA_SUCCESS;
}

CUresult Timeline::Record(CUevent event, CUstream stream) {
  const auto found = events_.find(event);
  if (found == events_.end() || !streams_.contains(stream)) {
    return Refuse("cuEventRecord of no event, or in no stream");
  }
  const Stream& on = streams_[stream];
  if (found->second.gpu != on.gpu) {
    findings().Violate("cuEventRecord of another context's event");
    return CUDA_ERROR_INVALID_HANDLE;
  }
  Join(streams_[stream].clock, host_);
  Event recorded{.gpu = on.gpu,
                 .has_timing = found->second.has_timing,
                 .is_recorded = true,
                 .clock = on.clock,
                 .recorded_at = num_run_};
  if (IsCapturing(stream)) {
    recorded.captured_in = stream;
    recorded.capture = capture_->number;
  }
  found->second = recorded;
  return CUDA_SUCCESS;
}

CUresult Timeline::Wait(CUstream stream, CUevent event) {
  const auto found = events_.find(event);
  if (found == events_.end() || !streams_.contains(stream)) {
    return Refuse("wait for no event, or in no stream");
  }
  const Event& recorded = found->second;
  if (!recorded.is_recorded) return Refuse("wait for an event that was never recorded");
  if (IsOfAnEndedCapture(recorded)) return CUDA_ERROR_CAPTURED_EVENT;
  if (recorded.captured_in != nullptr) {
    if (stream == capture_->origin) {
      capture_->is_joined[recorded.captured_in] = true;
    } else {
      capture_->is_joined.try_emplace(stream, true);
    }
  } else if (IsCapturing(stream)) {
    capture_->is_broken = true;
    return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  } else {
    Join(streams_[stream].clock, recorded.clock);
  }
  return CUDA_SUCCESS;
}

CUresult Timeline::Synchronize(CUstream stream) {
  if (!streams_.contains(stream)) return Refuse("cuStreamSynchronize of no stream");
  if (const CUresult refused = RefuseWhileCapturing(stream)) return refused;
  return WaitFor(stream, streams_[stream].clock);
}

CUresult Timeline::SynchronizeAll(int gpu) {
  if (const CUresult refused = RefuseWhileCapturing(NullStream(gpu))) return refused;
  return WaitFor(NullStream(gpu), EverythingOf(gpu));
}

CUresult Timeline::Query(CUevent event) {
  const auto found = events_.find(event);
  if (found == events_.end()) return Refuse("cuEventQuery of no event");
  const Event& recorded = found->second;
  if (const CUresult broken = device().broken[recorded.gpu]) return broken;
  if (IsOfAnEndedCapture(recorded)) return CUDA_ERROR_CAPTURED_EVENT;
  if (recorded.captured_in != nullptr) return RefuseWhileCapturing(recorded.captured_in);
  if (random_() % 2 == 0) RunUntil(recorded.clock);  // time passes
  if (!HasRun(recorded.clock)) return CUDA_ERROR_NOT_READY;
  Join(host_, recorded.clock);
  return CUDA_SUCCESS;
}

CUresult Timeline::Elapsed(float* milliseconds, CUevent start, CUevent end) const {
  std::uint64_t at[2] = {};
  for (int i = 0; i < 2; ++i) {
    const auto found = events_.find(i == 0 ? start : end);
    if (found == events_.end()) return Refuse("cuEventElapsedTime of no event");
    const Event& event = found->second;
    if (!event.has_timing || !event.is_recorded) return CUDA_ERROR_INVALID_HANDLE;
    if (event.captured_in != nullptr) return CUDA_ERROR_CAPTURED_EVENT;
    if (!HasRun(event.clock)) return CUDA_ERROR_NOT_READY;
    at[i] = std::max(event.recorded_at, EndOf(event.clock));
  }
  *milliseconds = (static_cast<float>(at[1]) - static_cast<float>(at[0])) / 1000;
  return CUDA_SUCCESS;
}

CUresult Timeline::BeginCapture(CUstream stream, CUstreamCaptureMode mode) {
  if (IsNull(stream) || capture_) {
    return Refuse("a capture on the null stream, or a second capture at a time");
  }
  capture_ = std::make_unique<Capture>(Capture{.number = ++num_captures_,
                                               .origin = stream,
                                               .mode = mode,
                                               .thread = std::this_thread::get_id(),
                                               .is_joined = {},
                                               .graph = {}});
  return CUDA_SUCCESS;
}

CUresult Timeline::EndCapture(CUstream stream, std::unique_ptr<Graph>* graph) {
  if (!capture_ || capture_->origin != stream) {
    return Refuse("the end of a capture that wasn't begun on this stream");
  }
  const bool is_here = capture_->thread == std::this_thread::get_id();
  if (!is_here && capture_->mode != CU_STREAM_CAPTURE_MODE_RELAXED) {
    return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  }
  const auto ended = std::move(capture_);
  if (ended->is_broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  for (const auto& [drawn_in, is_joined] : ended->is_joined) {
    if (!is_joined) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  }
  *graph = std::make_unique<Graph>(std::move(ended->graph));
  return CUDA_SUCCESS;
}

bool Timeline::IsCapturing(CUstream stream) const {
  return capture_ && (stream == capture_->origin || capture_->is_joined.contains(stream));
}

bool Timeline::IsBarred(CUstream stream) const {
  return capture_ && IsNull(stream) && streams_.at(stream).gpu == streams_.at(capture_->origin).gpu;
}

CUresult Timeline::Launch(const Graph& graph, CUstream stream) {
  for (const Work& work : graph.work) {
    if (const CUresult refused = Enqueue(stream, work)) return refused;
  }
  return CUDA_SUCCESS;
}

CUresult Timeline::RefuseUnsafe() {
  if (!capture_ || own_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
  const bool is_here = capture_->thread == std::this_thread::get_id();
  const bool is_for_all =
      capture_->mode == CU_STREAM_CAPTURE_MODE_GLOBAL && own_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
  const bool is_for_here = is_here && capture_->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
  if (!is_for_all && !is_for_here) return CUDA_SUCCESS;
  capture_->is_broken = true;
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

void Timeline::ExchangeMode(CUstreamCaptureMode* mode) { std::swap(own_mode, *mode); }

void Timeline::Hang(const std::string& name, int nth) { to_hang_ = ToHang{name, nth}; }

void Timeline::EndHangs() {
  to_hang_.reset();
  for (auto& [name, stream] : streams_) {
    for (Item& item : stream.waiting) item.hangs = false;
  }
  hangs_ended_.notify_all();
}

void Timeline::Reset(std::uint64_t seed) {
  random_.seed(seed);
  EndHangs();
}

void Timeline::CheckUnused(CUdeviceptr start, std::size_t num_bytes, const std::string& why) const {
  for (const auto& [name, stream] : streams_) {
    for (const Item& item : stream.waiting) {
      for (const Access& access : item.work.accesses) {
        if (access.start < start + num_bytes && start < access.start + access.num_bytes) {
          findings().Violate(why + " of memory that " + item.work.what + " still uses");
        }
      }
    }
  }
}

std::string Timeline::leaks() const {
  std::string text;
  const std::size_t num_streams = streams_.size() - Device::kNumGpus;
  if (num_streams > 0) text += std::to_string(num_streams) + " streams\n";
  if (!events_.empty()) text += std::to_string(events_.size()) + " events\n";
  return text;
}

bool Timeline::HasEvents(int gpu) const {
  return std::ranges::any_of(events_, [&](const auto& event) { return event.second.gpu == gpu; });
}

bool Timeline::IsNull(CUstream stream) {
  const auto name = reinterpret_cast<std::uintptr_t>(stream);
  return name >= kFirstNullStream && name < kFirstNullStream + Device::kNumGpus;
}

bool Timeline::IsOfAnEndedCapture(const Event& event) const {
  return event.capture != 0 && (!capture_ || capture_->number != event.capture);
}

// The host can't wait for work that a capture only records; an attempt breaks the capture.
CUresult Timeline::RefuseWhileCapturing(CUstream stream) {
  if (!IsBarred(stream) && !IsCapturing(stream)) return CUDA_SUCCESS;
  capture_->is_broken = true;
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

bool Timeline::CheckAccess(int gpu, const Work& work) const {
  std::vector<Segment> segments;
  for (const Access& access : work.accesses) {
    if (memory().Resolve(access.start, access.num_bytes, gpu, access.writes, &segments)) continue;
    findings().Violate(work.what + (access.writes ? " writes" : " reads") +
                       " memory without that access");
    return false;
  }
  return true;
}

void Timeline::CheckRaces(CUstream stream, const Item& item) {
  for (const Access& access : item.work.accesses) {
    std::vector<Segment> segments;
    memory().Resolve(access.start, access.num_bytes, streams_.at(stream).gpu, access.writes,
                     &segments);
    for (const auto& [physical, start, num_bytes] : segments) {
      auto& accesses = past_[physical];
      std::erase_if(accesses, [&](const Past& p) { return Covers(host_, p.stream, p.number); });
      for (const Past& past : accesses) {
        const bool overlaps = past.start < start + num_bytes && start < past.end;
        if (!overlaps || !(past.writes || access.writes) || past.stream == stream) continue;
        if (Covers(item.after, past.stream, past.number)) continue;
        findings().Violate("no event orders " + item.work.what + " after " + past.what);
      }
      accesses.push_back(
          {start, start + num_bytes, stream, item.number, access.writes, item.work.what});
    }
  }
}

void Timeline::RunUntil(const Clock& target) {
  std::vector<CUstream> order;
  for (const auto& [name, stream] : streams_) order.push_back(name);
  std::ranges::shuffle(order, random_);
  while (!HasRun(target)) {
    if (random_() % 4 == 0) std::ranges::shuffle(order, random_);
    const CUstream next = PickReady(order);
    if (next == nullptr) return;
    Run(streams_[next]);
  }
}

// Work whose memory is gone when it runs breaks its GPU's context.
void Timeline::Run(Stream& stream) {
  const Item item = std::move(stream.waiting.front());
  stream.waiting.pop_front();
  CUresult& broken = device().broken[stream.gpu];
  const bool can_run = broken == CUDA_SUCCESS && CheckAccess(stream.gpu, item.work);
  if (can_run) item.work.run();
  if (!can_run && broken == CUDA_SUCCESS) broken = CUDA_ERROR_ILLEGAL_ADDRESS;
  stream.num_run = item.number;
  stream.ended_at.push_back(++num_run_);
}

void Timeline::RunToTheEnd(const Clock& target) {
  RunUntil(target);
  while (!HasRun(target)) {
    hangs_ended_.wait(lock());
    RunUntil(target);
  }
}

CUresult Timeline::WaitFor(CUstream stream, const Clock& target) {
  const Clock kept = target;  // a copy: other threads' calls change the stream's own clock
  const int gpu = streams_[stream].gpu;
  ++streams_[stream].num_waiting_threads;
  RunToTheEnd(kept);
  --streams_[stream].num_waiting_threads;
  Join(host_, kept);
  return device().broken[gpu];
}

CUstream Timeline::PickReady(const std::vector<CUstream>& order) {
  const auto ready =
      std::ranges::find_if(order, [&](CUstream name) { return IsReady(streams_[name]); });
  return ready == order.end() ? nullptr : *ready;
}

bool Timeline::IsReady(const Stream& stream) const {
  if (stream.waiting.empty() || stream.waiting.front().hangs) return false;
  return HasRun(stream.waiting.front().after);
}

bool Timeline::HasRun(const Clock& clock) const {
  return std::ranges::all_of(clock, [&](const auto& entry) {
    const auto stream = streams_.find(entry.first);
    return stream == streams_.end() || stream->second.num_run >= entry.second;
  });
}

Clock Timeline::Everything() const {
  Clock all;
  for (const auto& [name, stream] : streams_) all[name] = stream.num_enqueued;
  return all;
}

Clock Timeline::EverythingOf(int gpu) const {
  Clock all;
  for (const auto& [name, stream] : streams_) {
    if (stream.gpu == gpu) all[name] = stream.num_enqueued;
  }
  return all;
}

bool Timeline::MustHang(const std::string& name) {
  return to_hang_ && name.starts_with(to_hang_->name) && --to_hang_->nth == 0;
}

// When the last work that a clock covers has ended.
std::uint64_t Timeline::EndOf(const Clock& clock) const {
  std::uint64_t end = 0;
  for (const auto& [name, number] : clock) {
    const auto stream = streams_.find(name);
    if (stream == streams_.end() || number == 0) continue;
    end = std::max(end, stream->second.ended_at[number - 1]);
  }
  return end;
}

Timeline& timeline() {
  static Timeline all;
  return all;
}

}  // namespace fake_cuda
