// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/progress.h"

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

// No context is made current here, because events know their own.
CudaProgress::~CudaProgress() {
  for (const List& list : lists_) {
    for (const auto& mark : list.marks) api_.cuEventDestroy(mark.event);
  }
  for (const CUevent event : idle_) api_.cuEventDestroy(event);
}

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
  for (const auto& mark : lists_.back().marks) idle_.push_back(mark.event);
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
    if (!HasPassed(event)) break;
    progress.has_begun = true;
    progress.num_ended = num_copies;
  }
  return progress;
}

void CudaProgress::Record(std::size_t num_copies, CUstream stream) {
  CUevent event = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      event = idle_.back();
      idle_.pop_back();
    }
  }
  if (event == nullptr) {
    api_.Check(api_.cuEventCreate(&event, CU_EVENT_DISABLE_TIMING), "cuEventCreate for copies");
  }
  const CUresult result = api_.cuEventRecord(event, stream);
  const std::lock_guard lock(mutex_);
  if (result == CUDA_SUCCESS) {
    lists_.back().marks.push_back({event, num_copies});
  } else {
    idle_.push_back(event);
    api_.Check(result, "cuEventRecord among copies");
  }
}

bool CudaProgress::HasPassed(CUevent event) const {
  const CUresult result = api_.cuEventQuery(event);
  if (result == CUDA_ERROR_NOT_READY) return false;
  api_.Check(result, "cuEventQuery among copies");
  return true;
}

void CudaProgress::DropEnded() {
  while (!lists_.empty() && lists_.front().is_given) {
    const std::vector<MarkedEvent>& marks = lists_.front().marks;
    if (!HasPassed(marks.back().event)) return;
    for (const auto& mark : marks) idle_.push_back(mark.event);
    lists_.pop_front();
  }
}

}  // namespace dwdp
