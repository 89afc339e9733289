// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// What a copier notes for a trace: when its copies ran, and when marks were passed.
//
// Times are nanoseconds of CLOCK_MONOTONIC, which Python reads as time.perf_counter_ns().
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace dwdp {

std::int64_t NowNs();

// The list that a copy belongs to. Lists of many copies have fewer spans than copies.
struct ListTag {
  std::uint64_t ticket;
  int layer;
  std::size_t num_copies;
};

// Copies of one list from one peer, between two times. If other peers' copies ran in between, the
// copies themselves took less time than that: `busy_ns`.
struct CopySpan {
  std::uint64_t ticket;
  int layer;
  int peer;
  std::size_t num_bytes;
  std::size_t num_copies;
  std::int64_t begin_ns;
  std::int64_t end_ns;
  std::int64_t busy_ns;
};

// One copy or, of a batch, those from one peer.
struct TimedCopy {
  int peer;
  std::size_t num_bytes;
  std::int64_t begin_ns;
  std::int64_t end_ns;
  std::int64_t busy_ns;
};

struct RecordingLimits {
  std::size_t max_marks;
  std::size_t max_spans;
};

struct Recording {
  std::vector<std::int64_t> marks_ns;
  std::vector<CopySpan> copies;
  std::size_t num_dropped_bytes = 0;  // of copies that found no room
};

// Spans of copies, so many at most. A list has at most some hundred spans: if it has more copies,
// copies in a row from the same peer share a span.
class SpanLog {
 public:
  explicit SpanLog(std::size_t max_spans) : max_spans_(max_spans) {}

  // The copies of one list are added before those of the next.
  void Add(const ListTag& list, const TimedCopy& copy);
  std::vector<CopySpan> Take() { return std::move(spans_); }
  std::size_t num_dropped_bytes() const { return num_dropped_bytes_; }

 private:
  static constexpr std::size_t kMaxSpansOfList = 256;

  // The span that the next copy from this peer belongs to, or null if it needs a new one.
  CopySpan* Open(const ListTag& list, int peer);

  std::size_t max_spans_;
  std::vector<CopySpan> spans_;
  std::uint64_t ticket_ = 0;            // of the list whose copies were added last
  std::map<int, std::size_t> of_peer_;  // this list's last span of each peer
  std::size_t num_dropped_bytes_ = 0;
};

}  // namespace dwdp
