// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <utility>

#include "cuda/device.h"

namespace dwdp {

// Owns a stream that isn't ordered with the null stream. No context is made current to destroy it,
// because streams and events know their own.
class CudaStream {
 public:
  CudaStream(const CudaDevice& device, bool high_priority);
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  ~CudaStream() { api_.cuStreamDestroy(stream_); }

  CUstream get() const { return stream_; }

 private:
  const CudaApi& api_;
  CUstream stream_ = nullptr;
};

// Owns an event. Only one with timing tells when it happened; others cost less.
class CudaEvent {
 public:
  explicit CudaEvent(const CudaDevice& device, bool has_timing = false);
  CudaEvent(CudaEvent&& other) noexcept
      : api_(other.api_), event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&&) = delete;
  ~CudaEvent() {
    if (event_ != nullptr) api_.cuEventDestroy(event_);
  }

  CUevent get() const { return event_; }
  // Tells whether the work before the event's last record has ended.
  bool HasPassed() const;

 private:
  const CudaApi& api_;
  CUevent event_ = nullptr;
};

}  // namespace dwdp
