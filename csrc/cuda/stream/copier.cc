// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/stream/copier.h"

#include <algorithm>

#include "base/error.h"

namespace dwdp {

static_assert(std::is_same_v<CopyRound::Address, CUdeviceptr>);

CudaCopier::CudaCopier(std::shared_ptr<const CudaDevice> device, CudaCopierOptions options)
    : device_(std::move(device)),
      api_(device_->api()),
      use_batches_(options.use_batches && api_.cuMemcpyBatchAsync != nullptr),
      attribute_of_(kMaxBatch, 0),
      copy_stream_(*device_, options.high_priority),
      gate_(*device_),
      progress_(device_) {
  attributes_.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
  if (options.prefer_overlap) attributes_.flags = CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE;
  for (std::size_t i = 0; i < kNumEvents; ++i) done_.emplace_back(*device_);
}

// The memory of the copies may be unmapped next.
CudaCopier::~CudaCopier() { api_.cuStreamSynchronize(copy_stream_.get()); }

Copier::Ticket CudaCopier::Submit(std::shared_ptr<const CopyList> list, Stream stream) {
  const CudaScope scope(device_->context());
  const auto computing = reinterpret_cast<CUstream>(stream);
  RequireUncaptured(computing);
  api_.Check(api_.cuEventRecord(gate_.get(), computing), "cuEventRecord before copies");
  api_.Check(api_.cuStreamWaitEvent(copy_stream_.get(), gate_.get(), CU_EVENT_WAIT_DEFAULT),
             "cuStreamWaitEvent before copies");
  const Ticket ticket = num_submitted_ + 1;
  progress_.Begin(ticket, *list, copy_stream_.get());
  if (recorder_) recorder_->Begin(ticket, *list, copy_stream_.get());
  Run(*list);
  api_.Check(api_.cuEventRecord(done_[ticket % kNumEvents].get(), copy_stream_.get()),
             "cuEventRecord after copies");
  return num_submitted_ = ticket;
}

void CudaCopier::Wait(Ticket ticket, Stream stream) {
  RequireSubmitted(ticket);
  const CudaScope scope(device_->context());
  const auto computing = reinterpret_cast<CUstream>(stream);
  RequireUncaptured(computing);
  api_.Check(
      api_.cuStreamWaitEvent(computing, done_[ticket % kNumEvents].get(), CU_EVENT_WAIT_DEFAULT),
      "cuStreamWaitEvent for copies");
}

bool CudaCopier::IsDone(Ticket ticket) const {
  RequireSubmitted(ticket);
  const CudaScope scope(device_->context());
  return done_[ticket % kNumEvents].HasPassed();
}

void CudaCopier::Drain() {
  const CudaScope scope(device_->context());
  api_.Check(api_.cuStreamSynchronize(copy_stream_.get()),
             "cuStreamSynchronize of the copy stream");
}

void CudaCopier::StartRecording(const RecordingLimits& limits) {
  recorder_.emplace(device_, copy_stream_.get(), limits);
}

std::int64_t CudaCopier::Mark(Stream stream) {
  return recorder_ ? recorder_->Mark(reinterpret_cast<CUstream>(stream)) : kNoMark;
}

void CudaCopier::EndRecording() {
  if (recorder_) recorder_->End();
}

Recording CudaCopier::TakeRecording() {
  if (!recorder_) return {};
  Recording taken = recorder_->Take();
  recorder_.reset();
  return taken;
}

void CudaCopier::RequireSubmitted(Ticket ticket) const {
  Require(ticket > 0 && ticket <= num_submitted_, "expected the ticket of a submitted list, got " +
                                                      std::to_string(ticket) + " of " +
                                                      std::to_string(num_submitted_));
}

void CudaCopier::RequireUncaptured(CUstream stream) const {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  api_.Check(api_.cuStreamIsCapturing(stream, &status), "cuStreamIsCapturing");
  Require(status == CU_STREAM_CAPTURE_STATUS_NONE,
          "expected a stream that runs, got one under graph capture, where copies would be lost; "
          "steps of captured sizes must fetch 'direct' or 'selective'");
}

void CudaCopier::Run(const CopyList& list) {
  try {
    for (const CopyRound& round : list.rounds) RunRound(round);
    progress_.End(copy_stream_.get());
  } catch (...) {
    progress_.GiveUp();
    throw;
  }
}

void CudaCopier::RunRound(const CopyRound& round) {
  if (!use_batches_) return CopyOneByOne(round);
  for (std::size_t first = 0; first < round.size(); first += kMaxBatch) {
    CopyBatch(round, first, std::min(kMaxBatch, round.size() - first));
  }
}

void CudaCopier::NoteEnqueued(const CopyRound& round, std::size_t first, std::size_t num_copies) {
  progress_.Mark(num_copies, copy_stream_.get());
  if (recorder_) recorder_->NoteEnqueued(round, first, num_copies, copy_stream_.get());
}

// The driver's signature lacks const, but it writes to none of the arrays.
void CudaCopier::CopyBatch(const CopyRound& round, std::size_t first, std::size_t num_copies) {
  std::size_t failed = 0;
  api_.Check(
      api_.cuMemcpyBatchAsync(const_cast<CUdeviceptr*>(round.destinations()) + first,
                              const_cast<CUdeviceptr*>(round.sources()) + first,
                              const_cast<std::size_t*>(round.sizes()) + first, num_copies,
                              &attributes_, attribute_of_.data(), 1, &failed, copy_stream_.get()),
      "cuMemcpyBatchAsync of " + std::to_string(num_copies) + " copies");
  NoteEnqueued(round, first, num_copies);
}

void CudaCopier::CopyOneByOne(const CopyRound& round) {
  for (std::size_t i = 0; i < round.size(); ++i) {
    const CUresult result = api_.cuMemcpyDtoDAsync(round.destinations()[i], round.sources()[i],
                                                   round.sizes()[i], copy_stream_.get());
    if (result != CUDA_SUCCESS) {  // making the text for each copy would cost time
      api_.Check(result, "cuMemcpyDtoDAsync of " + std::to_string(round.sizes()[i]) + " bytes");
    }
    NoteEnqueued(round, i, 1);
  }
}

}  // namespace dwdp
