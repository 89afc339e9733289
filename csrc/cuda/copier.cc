// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda/copier.h"

#include <algorithm>

#include "base/error.h"

namespace dwdp {

static_assert(std::is_same_v<CopyRound::Address, CUdeviceptr>);

CudaCopier::CudaCopier(std::shared_ptr<const CudaDevice> device, CudaCopierOptions options)
    : device_(std::move(device)),
      api_(device_->api()),
      use_batches_(options.use_batches && api_.cuMemcpyBatchAsync != nullptr),
      attribute_of_(kMaxBatch, 0),
      progress_(device_) {
  attributes_.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
  if (options.prefer_overlap) attributes_.flags = CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE;
  const CudaScope scope(device_->context());
  try {
    int lowest = 0;
    int highest = 0;
    api_.Check(api_.cuCtxGetStreamPriorityRange(&lowest, &highest), "cuCtxGetStreamPriorityRange");
    api_.Check(api_.cuStreamCreateWithPriority(&copy_stream_, CU_STREAM_NON_BLOCKING,
                                               options.high_priority ? highest : lowest),
               "cuStreamCreateWithPriority");
    api_.Check(api_.cuEventCreate(&gate_, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    for (CUevent& event : done_) {
      api_.Check(api_.cuEventCreate(&event, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    }
  } catch (...) {
    Release();
    throw;
  }
}

// No context is made current here, because streams and events know their own.
CudaCopier::~CudaCopier() {
  api_.cuStreamSynchronize(copy_stream_);  // the memory of the copies may be unmapped next
  Release();
}

Copier::Ticket CudaCopier::Submit(std::shared_ptr<const CopyList> list, Stream stream) {
  const CudaScope scope(device_->context());
  const auto computing = reinterpret_cast<CUstream>(stream);
  RequireUncaptured(computing);
  api_.Check(api_.cuEventRecord(gate_, computing), "cuEventRecord before copies");
  api_.Check(api_.cuStreamWaitEvent(copy_stream_, gate_, CU_EVENT_WAIT_DEFAULT),
             "cuStreamWaitEvent before copies");
  const Ticket ticket = num_submitted_ + 1;
  progress_.Begin(ticket, *list, copy_stream_);
  Run(*list);
  api_.Check(api_.cuEventRecord(done_[ticket % kNumEvents], copy_stream_),
             "cuEventRecord after copies");
  return num_submitted_ = ticket;
}

void CudaCopier::Wait(Ticket ticket, Stream stream) {
  RequireSubmitted(ticket);
  const CudaScope scope(device_->context());
  const auto computing = reinterpret_cast<CUstream>(stream);
  RequireUncaptured(computing);
  api_.Check(api_.cuStreamWaitEvent(computing, done_[ticket % kNumEvents], CU_EVENT_WAIT_DEFAULT),
             "cuStreamWaitEvent for copies");
}

bool CudaCopier::IsDone(Ticket ticket) const {
  RequireSubmitted(ticket);
  const CudaScope scope(device_->context());
  const CUresult result = api_.cuEventQuery(done_[ticket % kNumEvents]);
  if (result == CUDA_ERROR_NOT_READY) return false;
  api_.Check(result, "cuEventQuery");
  return true;
}

void CudaCopier::Drain() {
  const CudaScope scope(device_->context());
  api_.Check(api_.cuStreamSynchronize(copy_stream_), "cuStreamSynchronize of the copy stream");
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
    progress_.End(copy_stream_);
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

// The driver's signature lacks const, but it writes to none of the arrays.
void CudaCopier::CopyBatch(const CopyRound& round, std::size_t first, std::size_t num_copies) {
  std::size_t failed = 0;
  api_.Check(api_.cuMemcpyBatchAsync(const_cast<CUdeviceptr*>(round.destinations()) + first,
                                     const_cast<CUdeviceptr*>(round.sources()) + first,
                                     const_cast<std::size_t*>(round.sizes()) + first, num_copies,
                                     &attributes_, attribute_of_.data(), 1, &failed, copy_stream_),
             "cuMemcpyBatchAsync of " + std::to_string(num_copies) + " copies");
  progress_.Mark(num_copies, copy_stream_);
}

void CudaCopier::CopyOneByOne(const CopyRound& round) {
  for (std::size_t i = 0; i < round.size(); ++i) {
    const CUresult result = api_.cuMemcpyDtoDAsync(round.destinations()[i], round.sources()[i],
                                                   round.sizes()[i], copy_stream_);
    if (result != CUDA_SUCCESS) {  // making the text for each copy would cost time
      api_.Check(result, "cuMemcpyDtoDAsync of " + std::to_string(round.sizes()[i]) + " bytes");
    }
    progress_.Mark(1, copy_stream_);
  }
}

void CudaCopier::Release() {
  for (const CUevent event : done_) {
    if (event != nullptr) api_.cuEventDestroy(event);
  }
  if (gate_ != nullptr) api_.cuEventDestroy(gate_);
  if (copy_stream_ != nullptr) api_.cuStreamDestroy(copy_stream_);
}

}  // namespace dwdp
