// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <memory>
#include <vector>

#include "copy/copier.h"
#include "cuda/stream/handles.h"

namespace dwdp {

// Notes for a trace when copies in a stream run and when marks are passed, by events with timing.
//
// The events' times are told from that of an anchor, an event for which the host waits once, when
// the recording starts. They are late by as long as the host took to hear of it.
class CudaRecorder {
 public:
  // Waits for the work in `stream`, in which the copies will run.
  CudaRecorder(std::shared_ptr<const CudaDevice> device, CUstream stream, RecordingLimits limits);

  // See Copier::Mark.
  std::int64_t Mark(CUstream stream);
  // To be called before the copies of a list are enqueued.
  void Begin(Copier::Ticket ticket, const CopyList& list, CUstream stream);
  // To be called when the copies of a round from `first` on, so many, have been enqueued. Called
  // for all copies of the list in order.
  void NoteEnqueued(const CopyRound& round, std::size_t first, std::size_t num_copies,
                    CUstream stream);
  // Notes no more marks, and no more lists.
  void End();
  // Waits for all work of the GPU, and returns what was noted.
  Recording Take();

 private:
  // Copies that were enqueued together. They run between the event before theirs and their own.
  struct Group {
    std::size_t list;               // its index in lists_
    std::size_t event;              // its index in copy_events_
    std::vector<TimedCopy> copies;  // without times
  };

  // By peer, the bytes of copies that have just been enqueued.
  std::vector<TimedCopy> ByPeer(const CopyRound& round, std::size_t first,
                                std::size_t num_copies) const;
  std::size_t Record(std::vector<CudaEvent>& events, CUstream stream);
  // When events have happened, which are given in the order of their recording.
  std::vector<std::int64_t> TimesOf(const std::vector<CudaEvent>& events) const;
  void AddTo(SpanLog& log, const Group& group, const std::vector<std::int64_t>& times) const;

  std::shared_ptr<const CudaDevice> device_;
  const CudaApi& api_;
  RecordingLimits limits_;
  CudaEvent anchor_;
  std::int64_t anchor_ns_ = 0;
  bool is_ended_ = false;
  bool notes_list_ = false;  // whether there was room for the current list
  std::vector<CudaEvent> marks_;
  std::vector<CudaEvent> copy_events_;
  std::vector<ListTag> lists_;
  std::vector<Group> groups_;
  const CopyList* list_ = nullptr;  // the one whose copies are being enqueued
  std::size_t num_enqueued_ = 0;    // its copies that have been enqueued
  std::size_t num_dropped_bytes_ = 0;
};

}  // namespace dwdp
