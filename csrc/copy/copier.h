// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The seam between the fetch scheduler and the code that moves bytes: threads on the host, a copy
// stream on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "copy/recording.h"

namespace dwdp {

struct Copy {
  std::byte* destination;
  const std::byte* source;
  std::size_t num_bytes;
};

// Copies that may run in any order or at the same time. They are kept as the arrays that the CUDA
// driver takes, so that no arrays have to be made when a list is submitted.
class CopyRound {
 public:
  using Address = unsigned long long;  // what CUdeviceptr is in CUDA's headers

  CopyRound() = default;
  CopyRound(const std::vector<Copy>& copies) {
    for (const Copy& copy : copies) Add(copy);
  }

  void Add(const Copy& copy) {
    destinations_.push_back(reinterpret_cast<Address>(copy.destination));
    sources_.push_back(reinterpret_cast<Address>(copy.source));
    sizes_.push_back(copy.num_bytes);
  }
  std::size_t size() const { return sizes_.size(); }
  bool empty() const { return sizes_.empty(); }
  Copy operator[](std::size_t i) const {
    return {reinterpret_cast<std::byte*>(destinations_[i]),
            reinterpret_cast<const std::byte*>(sources_[i]), sizes_[i]};
  }

  const Address* destinations() const { return destinations_.data(); }
  const Address* sources() const { return sources_.data(); }
  const std::size_t* sizes() const { return sizes_.data(); }

 private:
  std::vector<Address> destinations_;
  std::vector<Address> sources_;
  std::vector<std::size_t> sizes_;
};

// Copies in rounds, which run one after the other.
//
// A thread that doesn't hold Python's lock may drop the last reference to a list, and with it the
// memory that the list holds. So Python must not count the references to either. nanobind leaves
// that to std::shared_ptr for classes that derive from std::enable_shared_from_this.
struct CopyList : std::enable_shared_from_this<CopyList> {
  explicit CopyList(const std::vector<std::vector<Copy>>& all = {},
                    std::vector<std::shared_ptr<const void>> held = {})
      : rounds(all.begin(), all.end()), memory(std::move(held)) {}

  static constexpr int kNoLayer = -1;
  static constexpr int kNoPeer = -1;

  std::size_t num_copies() const {
    std::size_t sum = 0;
    for (const CopyRound& round : rounds) sum += round.size();
    return sum;
  }
  // Whose memory a copy reads; copies are numbered over all rounds.
  int peer(std::size_t copy) const { return copy < peers.size() ? peers[copy] : kNoPeer; }

  std::vector<CopyRound> rounds;
  std::vector<std::shared_ptr<const void>> memory;  // kept mapped until the copies have ended
  int layer = kNoLayer;                             // the MoE layer whose experts are copied
  std::vector<int> peers;  // for traces: by copy, the peer that is read; empty if nobody asks
};

// Runs copy lists one after the other, in the order of their submission.
//
// `stream` is the handle of the CUDA stream whose kernels read the destinations. Submit orders
// copies after the work that was enqueued in this stream before; Wait orders the work that is
// enqueued afterwards behind the copies. Where the CPU reads the destinations, the calling thread
// takes the stream's place, and the handle is kCpu.
class Copier {
 public:
  using Ticket = std::uint64_t;
  using Stream = std::uintptr_t;
  static constexpr Stream kCpu = 0;

  // How far the copies of a list have come.
  struct Progress {
    Ticket ticket = 0;
    int layer = CopyList::kNoLayer;
    bool has_begun = false;
    // So many copies have ended, on a GPU perhaps some more. Those of one round end in any order.
    std::size_t num_ended = 0;
  };

  virtual ~Copier() = default;
  // Enqueues a list and returns its ticket, without waiting for copies. They start after those of
  // all lists submitted before, and after the work enqueued in `stream` so far. Throws DriverError
  // if a GPU's `stream` is under graph capture, or if the driver refuses a copy.
  virtual Ticket Submit(std::shared_ptr<const CopyList> list, Stream stream) = 0;
  // Drops the rounds of a list that have not begun, on the host; a GPU runs them all the same. Wait
  // still waits for the rounds that have begun.
  virtual void Cancel(Ticket ticket) = 0;
  // Makes the work that is enqueued in `stream` from now on wait for the copies. On the host it
  // blocks until they have ended. Throws DriverError as Submit does, and for a ticket that was not
  // given out.
  virtual void Wait(Ticket ticket, Stream stream) = 0;
  virtual bool IsDone(Ticket ticket) const = 0;
  // Blocks until the copies of all submitted lists have ended.
  virtual void Drain() = 0;
  // The progress of the first list whose copies haven't all ended, or nothing if there is none. Any
  // thread may call this at any time.
  virtual std::optional<Progress> FirstUnderWay() = 0;

  // The next calls record for a trace. The thread that submits lists makes them.
  //
  // From now on notes when marks are passed, and when the copies run of lists that are submitted
  // from now on. Forgets what was noted before. On a GPU it waits for copies under way.
  virtual void StartRecording(const RecordingLimits& limits) = 0;
  // Marks the point that the work enqueued in `stream` has reached, on the host the present.
  // Returns the mark's number, from 0; kNoMark under graph capture, or if there is no room.
  virtual std::int64_t Mark(Stream stream) = 0;
  // Notes nothing about lists that are submitted from now on.
  virtual void EndRecording() = 0;
  // Ends the recording if it runs, waits for its copies and marks, and hands out what was noted.
  virtual Recording TakeRecording() = 0;
  static constexpr std::int64_t kNoMark = -1;
};

}  // namespace dwdp
