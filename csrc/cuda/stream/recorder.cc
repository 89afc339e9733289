// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/stream/recorder.h"

#include <map>
#include <utility>

namespace dwdp {
namespace {

constexpr double kNsPerMs = 1e6;
// The driver tells times between events as float milliseconds, which are exact enough up to this.
constexpr float kMaxExactMs = 1000;

}  // namespace

CudaRecorder::CudaRecorder(std::shared_ptr<const CudaDevice> device, CUstream stream,
                           RecordingLimits limits)
    : device_(std::move(device)),
      api_(device_->api()),
      limits_(limits),
      anchor_(*device_, /*has_timing=*/true) {
  const CudaScope scope(device_->context());
  api_.Check(api_.cuEventRecord(anchor_.get(), stream), "cuEventRecord of a trace's first event");
  api_.Check(api_.cuStreamSynchronize(stream), "cuStreamSynchronize before a trace");
  anchor_ns_ = NowNs();
}

std::int64_t CudaRecorder::Mark(CUstream stream) {
  if (is_ended_ || marks_.size() >= limits_.max_marks) return Copier::kNoMark;
  const CudaScope scope(device_->context());
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  api_.Check(api_.cuStreamIsCapturing(stream, &status), "cuStreamIsCapturing for a trace");
  if (status != CU_STREAM_CAPTURE_STATUS_NONE) return Copier::kNoMark;
  return static_cast<std::int64_t>(Record(marks_, stream));
}

void CudaRecorder::Begin(Copier::Ticket ticket, const CopyList& list, CUstream stream) {
  list_ = &list;
  num_enqueued_ = 0;
  notes_list_ = !is_ended_ && groups_.size() < limits_.max_spans;
  if (!notes_list_) return;
  lists_.push_back({ticket, list.layer, list.num_copies()});
  Record(copy_events_, stream);
}

void CudaRecorder::NoteEnqueued(const CopyRound& round, std::size_t first, std::size_t num_copies,
                                CUstream stream) {
  std::vector<TimedCopy> copies = ByPeer(round, first, num_copies);
  num_enqueued_ += num_copies;
  if (is_ended_) return;
  if (notes_list_ && groups_.size() < limits_.max_spans) {
    groups_.push_back({lists_.size() - 1, Record(copy_events_, stream), std::move(copies)});
  } else {
    for (const TimedCopy& copy : copies) num_dropped_bytes_ += copy.num_bytes;
  }
}

void CudaRecorder::End() { is_ended_ = true; }

Recording CudaRecorder::Take() {
  End();
  const CudaScope scope(device_->context());
  api_.Check(api_.cuCtxSynchronize(), "cuCtxSynchronize after a trace");
  const std::vector<std::int64_t> times = TimesOf(copy_events_);
  SpanLog log(limits_.max_spans);
  for (const Group& group : groups_) AddTo(log, group, times);
  return {TimesOf(marks_), log.Take(), num_dropped_bytes_ + log.num_dropped_bytes()};
}

std::vector<TimedCopy> CudaRecorder::ByPeer(const CopyRound& round, std::size_t first,
                                            std::size_t num_copies) const {
  std::map<int, std::size_t> bytes;
  for (std::size_t i = 0; i < num_copies; ++i) {
    bytes[list_->peer(num_enqueued_ + i)] += round.sizes()[first + i];
  }
  std::vector<TimedCopy> copies;
  for (const auto& [peer, num_bytes] : bytes) copies.push_back({peer, num_bytes, 0, 0, 0});
  return copies;
}

std::size_t CudaRecorder::Record(std::vector<CudaEvent>& events, CUstream stream) {
  CudaEvent event(*device_, /*has_timing=*/true);
  api_.Check(api_.cuEventRecord(event.get(), stream), "cuEventRecord for a trace");
  events.push_back(std::move(event));
  return events.size() - 1;
}

std::vector<std::int64_t> CudaRecorder::TimesOf(const std::vector<CudaEvent>& events) const {
  std::vector<std::int64_t> times;
  CUevent base = anchor_.get();
  std::int64_t base_ns = anchor_ns_;
  for (const CudaEvent& event : events) {
    float ms = 0;
    api_.Check(api_.cuEventElapsedTime(&ms, base, event.get()), "cuEventElapsedTime of a trace");
    times.push_back(base_ns + static_cast<std::int64_t>(static_cast<double>(ms) * kNsPerMs));
    if (ms > kMaxExactMs) {
      base = event.get();
      base_ns = times.back();
    }
  }
  return times;
}

void CudaRecorder::AddTo(SpanLog& log, const Group& group,
                         const std::vector<std::int64_t>& times) const {
  std::size_t num_bytes = 0;
  for (const TimedCopy& copy : group.copies) num_bytes += copy.num_bytes;
  for (TimedCopy copy : group.copies) {
    copy.begin_ns = times[group.event - 1];
    copy.end_ns = times[group.event];
    const double share = static_cast<double>(copy.num_bytes) / static_cast<double>(num_bytes);
    copy.busy_ns =
        static_cast<std::int64_t>(share * static_cast<double>(copy.end_ns - copy.begin_ns));
    log.Add(lists_[group.list], copy);
  }
}

}  // namespace dwdp
