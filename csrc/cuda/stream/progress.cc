// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/stream/progress.h"

#include <utility>

namespace dwdp {
namespace {

// While it lives, queries of this thread don't break a graph capture of another thread.
class RelaxedCapture {
 public:
  explicit RelaxedCapture(const CudaApi& api) : api_(api) { Exchange(); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;
  ~RelaxedCapture() { api_.cuThreadExchangeStreamCaptureMode(&mode_); }

 private:
  void Exchange() {
    api_.Check(api_.cuThreadExchangeStreamCaptureMode(&mode_), "cuThreadExchangeStreamCaptureMode");
  }

  const CudaApi& api_;
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

}  // namespace

CudaProgress::CudaProgress(std::shared_ptr<const CudaDevice> device)
    : device_(std::move(device)), api_(device_->api()) {}

void CudaProgress::Begin(Copier::Ticket ticket, const CopyList& list, CUstream stream) {
  std::size_t num_copies = 0;
  for (const CopyRound& round : list.rounds) num_copies += round.size();
  {
    const std::lock_guard lock(mutex_);
    DropEnded();
    lists_.push_back(
        {.ticket = ticket, .layer = list.layer, .stride = num_copies / kMaxMarks + 1, .marks = {}});
  }
  try {
    Record(0, stream);
  } catch (...) {
    GiveUp();
    throw;
  }
}

void CudaProgress::Mark(std::size_t num_copies, CUstream stream) {
  std::size_t num_given = 0;
  {
    const std::lock_guard lock(mutex_);
    List& list = lists_.back();
    num_given = list.num_given += num_copies;
    if (num_given - list.marks.back().num_copies < list.stride) return;
  }
  Record(num_given, stream);
}

void CudaProgress::End(CUstream stream) {
  std::size_t num_given = 0;
  bool is_marked = false;
  {
    const std::lock_guard lock(mutex_);
    num_given = lists_.back().num_given;
    is_marked = lists_.back().marks.back().num_copies == num_given;
  }
  if (!is_marked) Record(num_given, stream);
  const std::lock_guard lock(mutex_);
  lists_.back().is_given = true;
}

void CudaProgress::GiveUp() {
  const std::lock_guard lock(mutex_);
  Reuse(lists_.back().marks);
  lists_.pop_back();
}

std::optional<Copier::Progress> CudaProgress::First() {
  const std::lock_guard lock(mutex_);
  const CudaScope scope(device_->context());
  const RelaxedCapture relaxed(api_);
  DropEnded();
  if (lists_.empty()) return std::nullopt;
  const List& list = lists_.front();
  Copier::Progress progress{.ticket = list.ticket, .layer = list.layer};
  for (const auto& [event, num_copies] : list.marks) {
    if (!event.HasPassed()) break;
    progress.has_begun = true;
    progress.num_ended = num_copies;
  }
  return progress;
}

void CudaProgress::Record(std::size_t num_copies, CUstream stream) {
  CudaEvent event = TakeIdle();
  const CUresult result = api_.cuEventRecord(event.get(), stream);
  const std::lock_guard lock(mutex_);
  if (result == CUDA_SUCCESS) {
    lists_.back().marks.push_back({std::move(event), num_copies});
  } else {
    idle_.push_back(std::move(event));
    api_.Check(result, "cuEventRecord among copies");
  }
}

CudaEvent CudaProgress::TakeIdle() {
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      CudaEvent event = std::move(idle_.back());
      idle_.pop_back();
      return event;
    }
  }
  return CudaEvent(*device_);
}

void CudaProgress::Reuse(std::vector<MarkedEvent>& marks) {
  for (MarkedEvent& mark : marks) idle_.push_back(std::move(mark.event));
}

void CudaProgress::DropEnded() {
  while (!lists_.empty() && lists_.front().is_given) {
    std::vector<MarkedEvent>& marks = lists_.front().marks;
    if (!marks.back().event.HasPassed()) return;
    Reuse(marks);
    lists_.pop_front();
  }
}

}  // namespace dwdp
