// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "cuda_copier.h"

#include <algorithm>

#include "error.h"

namespace dwdp {
namespace {

CUdeviceptr Pointer(const std::byte* address) { return reinterpret_cast<CUdeviceptr>(address); }

}  // namespace

CudaCopier::CudaCopier(std::shared_ptr<const CudaDevice> device, CudaCopierOptions options)
    : device_(std::move(device)),
      api_(device_->api()),
      use_batches_(options.use_batches && api_.cuMemcpyBatchAsync != nullptr),
      prefer_overlap_(options.prefer_overlap) {
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

// Streams and events know their context.
CudaCopier::~CudaCopier() {
  api_.cuStreamSynchronize(copy_stream_);  // slots go next
  Release();
}

Copier::Ticket CudaCopier::Submit(std::shared_ptr<const CopyList> list, Stream stream) {
  const CudaScope scope(device_->context());
  const auto computing = reinterpret_cast<CUstream>(stream);
  RequireUncaptured(computing);
  api_.Check(api_.cuEventRecord(gate_, computing), "cuEventRecord before copies");
  api_.Check(api_.cuStreamWaitEvent(copy_stream_, gate_, CU_EVENT_WAIT_DEFAULT),
             "cuStreamWaitEvent before copies");
  for (const auto& round : list->rounds) CopyRound(round);
  const Ticket ticket = num_submitted_ + 1;
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
  Require(ticket > 0 && ticket <= num_submitted_,
          "expected the ticket of something submitted, got " + std::to_string(ticket) + " of " +
              std::to_string(num_submitted_));
}

void CudaCopier::RequireUncaptured(CUstream stream) const {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  api_.Check(api_.cuStreamIsCapturing(stream, &status), "cuStreamIsCapturing");
  Require(status == CU_STREAM_CAPTURE_STATUS_NONE,
          "expected a stream that runs, got one under graph capture, where copies would be lost; "
          "steps of captured sizes must fetch 'direct' or 'selective'");
}

void CudaCopier::CopyRound(const std::vector<Copy>& round) {
  if (!use_batches_) return CopyOneByOne(round);
  for (std::size_t at = 0; at < round.size(); at += kMaxBatch) {
    CopyBatch(round.data() + at, std::min(kMaxBatch, round.size() - at));
  }
}

void CudaCopier::CopyBatch(const Copy* copies, std::size_t num_copies) {
  std::vector<CUdeviceptr> destinations(num_copies);
  std::vector<CUdeviceptr> sources(num_copies);
  std::vector<std::size_t> sizes(num_copies);
  for (std::size_t i = 0; i < num_copies; ++i) {
    destinations[i] = Pointer(copies[i].destination);
    sources[i] = Pointer(copies[i].source);
    sizes[i] = copies[i].num_bytes;
  }
  CUmemcpyAttributes attributes = {};
  attributes.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
  if (prefer_overlap_) attributes.flags = CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE;
  // One index would do; drivers have been seen to read one for every copy.
  std::vector<std::size_t> attribute_of(num_copies, 0);
  std::size_t failed = 0;
  api_.Check(api_.cuMemcpyBatchAsync(destinations.data(), sources.data(), sizes.data(), num_copies,
                                     &attributes, attribute_of.data(), 1, &failed, copy_stream_),
             "cuMemcpyBatchAsync of " + std::to_string(num_copies) + " copies");
}

void CudaCopier::CopyOneByOne(const std::vector<Copy>& round) {
  for (const Copy& copy : round) {
    api_.Check(api_.cuMemcpyDtoDAsync(Pointer(copy.destination), Pointer(copy.source),
                                      copy.num_bytes, copy_stream_),
               "cuMemcpyDtoDAsync of " + std::to_string(copy.num_bytes) + " bytes");
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
