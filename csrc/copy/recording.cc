// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "copy/recording.h"

#include <algorithm>
#include <chrono>

namespace dwdp {

std::int64_t NowNs() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

void SpanLog::Add(const ListTag& list, const TimedCopy& copy) {
  if (CopySpan* span = Open(list, copy.peer)) {
    span->num_bytes += copy.num_bytes;
    ++span->num_copies;
    span->begin_ns = std::min(span->begin_ns, copy.begin_ns);
    span->end_ns = std::max(span->end_ns, copy.end_ns);
    span->busy_ns += copy.busy_ns;
  } else if (spans_.size() < max_spans_) {
    of_peer_[copy.peer] = spans_.size();
    spans_.push_back({list.ticket, list.layer, copy.peer, copy.num_bytes, 1, copy.begin_ns,
                      copy.end_ns, copy.busy_ns});
  } else {
    num_dropped_bytes_ += copy.num_bytes;
  }
}

CopySpan* SpanLog::Open(const ListTag& list, int peer) {
  if (list.ticket != ticket_) {
    ticket_ = list.ticket;
    of_peer_.clear();
  }
  const auto found = of_peer_.find(peer);
  if (found == of_peer_.end()) return nullptr;
  CopySpan& span = spans_[found->second];
  const std::size_t copies_of_span = list.num_copies / kMaxSpansOfList + 1;
  return span.num_copies < copies_of_span ? &span : nullptr;
}

}  // namespace dwdp
