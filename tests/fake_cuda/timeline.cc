// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "timeline.h"

#include <algorithm>

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

}  // namespace

CUresult Timeline::Create(CUstream* stream) {
  *stream = reinterpret_cast<CUstream>(++last_name_);
  streams_[*stream] = {};
  return CUDA_SUCCESS;
}

CUresult Timeline::Destroy(CUstream stream) {
  if (stream == nullptr || !streams_.contains(stream)) return Refuse("cuStreamDestroy of none");
  RunUntil({{stream, streams_[stream].num_enqueued}});
  streams_.erase(stream);
  for (auto& [id, accesses] : past_) {
    std::erase_if(accesses, [&](const Past& past) { return past.stream == stream; });
  }
  return CUDA_SUCCESS;
}

CUresult Timeline::Create(CUevent* event) {
  *event = reinterpret_cast<CUevent>(++last_name_);
  events_[*event] = {};
  return CUDA_SUCCESS;
}

CUresult Timeline::Destroy(CUevent event) {
  return events_.erase(event) ? CUDA_SUCCESS : Refuse("cuEventDestroy of none");
}

CUresult Timeline::Enqueue(CUstream stream, Work work) {
  if (!streams_.contains(stream)) return Refuse(work.what + " on a stream that isn't there");
  if (IsCapturing(stream)) {
    if (stream != capture_->origin) capture_->is_joined[stream] = false;
    capture_->graph.work.push_back(std::move(work));
    return CUDA_SUCCESS;
  }
  if (stream == nullptr && capture_) {
    capture_->is_broken = true;
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  }
  if (!CheckAccess(work)) return CUDA_ERROR_INVALID_VALUE;
  Stream& on = streams_[stream];
  Join(on.clock, host_);
  Item item{++on.num_enqueued, on.clock, std::move(work)};
  on.clock[stream] = item.number;
  CheckRaces(stream, item);
  on.waiting.push_back(std::move(item));
  if (runs_at_once_) RunUntil(Everything());
  return CUDA_SUCCESS;
}

CUresult Timeline::Record(CUevent event, CUstream stream) {
  if (!events_.contains(event) || !streams_.contains(stream))
    return Refuse("cuEventRecord of none");
  Join(streams_[stream].clock, host_);
  events_[event] = {streams_[stream].clock, IsCapturing(stream) ? stream : nullptr};
  return CUDA_SUCCESS;
}

CUresult Timeline::Wait(CUstream stream, CUevent event) {
  if (!events_.contains(event) || !streams_.contains(stream)) return Refuse("wait for none");
  const Event& recorded = events_[event];
  if (recorded.captured_in != nullptr && capture_) {
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
  if (!streams_.contains(stream)) return Refuse("cuStreamSynchronize of none");
  if (const CUresult refused = RefuseWhileCapturing(stream)) return refused;
  Clock target = streams_[stream].clock;
  RunUntil(target);
  Join(host_, target);
  return CUDA_SUCCESS;
}

CUresult Timeline::SynchronizeAll() {
  if (const CUresult refused = RefuseWhileCapturing(nullptr)) return refused;
  const Clock target = Everything();
  RunUntil(target);
  Join(host_, target);
  past_.clear();
  return CUDA_SUCCESS;
}

CUresult Timeline::Query(CUevent event) {
  if (!events_.contains(event)) return Refuse("cuEventQuery of none");
  if (const CUresult refused = RefuseWhileCapturing(events_[event].captured_in)) return refused;
  if (random_() % 2 == 0) RunUntil(events_[event].clock);  // time passes
  if (!HasRun(events_[event].clock)) return CUDA_ERROR_NOT_READY;
  Join(host_, events_[event].clock);
  return CUDA_SUCCESS;
}

CUresult Timeline::BeginCapture(CUstream stream) {
  if (stream == nullptr || capture_) return Refuse("a capture on the null stream, or a second one");
  capture_ = std::make_unique<Capture>(Capture{.origin = stream, .is_joined = {}, .graph = {}});
  return CUDA_SUCCESS;
}

CUresult Timeline::EndCapture(CUstream stream, std::unique_ptr<Graph>* graph) {
  if (!capture_ || capture_->origin != stream) return Refuse("the end of no capture");
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

CUresult Timeline::Launch(const Graph& graph, CUstream stream) {
  for (const Work& work : graph.work) {
    if (const CUresult refused = Enqueue(stream, work)) return refused;
  }
  return CUDA_SUCCESS;
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
  if (streams_.size() > 1) text += std::to_string(streams_.size() - 1) + " streams\n";
  if (!events_.empty()) text += std::to_string(events_.size()) + " events\n";
  return text;
}

// The host may not wait for work that a capture only writes down; trying breaks the capture.
CUresult Timeline::RefuseWhileCapturing(CUstream stream) {
  if (!capture_ || (stream != nullptr && !IsCapturing(stream))) return CUDA_SUCCESS;
  capture_->is_broken = true;
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

bool Timeline::CheckAccess(const Work& work) const {
  std::vector<Segment> segments;
  for (const Access& access : work.accesses) {
    if (memory().Resolve(access.start, access.num_bytes, access.writes, &segments)) continue;
    findings().Violate(work.what + (access.writes ? " writes" : " reads") +
                       " memory without that access");
    return false;
  }
  return true;
}

void Timeline::CheckRaces(CUstream stream, const Item& item) {
  for (const Access& access : item.work.accesses) {
    std::vector<Segment> segments;
    memory().Resolve(access.start, access.num_bytes, access.writes, &segments);
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
    Stream& stream = streams_[PickReady(order)];
    const Item item = std::move(stream.waiting.front());
    stream.waiting.pop_front();
    if (CheckAccess(item.work)) item.work.run();
    stream.num_run = item.number;
  }
}

CUstream Timeline::PickReady(const std::vector<CUstream>& order) {
  return *std::ranges::find_if(order, [&](CUstream name) { return IsReady(streams_[name]); });
}

bool Timeline::IsReady(const Stream& stream) const {
  return !stream.waiting.empty() && HasRun(stream.waiting.front().after);
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

Timeline& timeline() {
  static Timeline all;
  return all;
}

}  // namespace fake_cuda
