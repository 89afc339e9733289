// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "copy/copier.h"
#include "cuda/stream/handles.h"

namespace dwdp {

// Tells how far the copies in a stream have come, by events that are recorded behind the copies.
//
// The thread that submits copies calls Begin, Mark, End and GiveUp; any thread may call First. No
// lock is held while a copy is submitted, so that First answers even if that call never returns.
class CudaProgress {
 public:
  explicit CudaProgress(std::shared_ptr<const CudaDevice> device);
  CudaProgress(const CudaProgress&) = delete;
  CudaProgress& operator=(const CudaProgress&) = delete;

  // To be called before the copies of a list are enqueued, when `stream` has been told what to wait
  // for.
  void Begin(Copier::Ticket ticket, const CopyList& list, CUstream stream);
  // To be called when `num_copies` more copies of the list have been enqueued.
  void Mark(std::size_t num_copies, CUstream stream);
  // To be called when all copies of the list have been enqueued.
  void End(CUstream stream);
  // To be called when a copy could not be enqueued: forgets the list.
  void GiveUp();

  // The progress of the first list whose copies haven't all ended, or nothing if there is none.
  std::optional<Copier::Progress> First();

 private:
  // Lists of fewer copies have a mark behind each copy, longer ones a mark behind every few copies,
  // and batches one mark each.
  static constexpr std::size_t kMaxMarks = 256;

  struct MarkedEvent {
    CudaEvent event;
    std::size_t num_copies;  // so many copies of the list have ended when the event has happened
  };
  struct List {
    Copier::Ticket ticket;
    int layer;
    std::size_t stride;  // copies from one mark to the next
    std::size_t num_given = 0;
    bool is_given = false;
    std::vector<MarkedEvent> marks;
  };

  void Record(std::size_t num_copies, CUstream stream);
  CudaEvent TakeIdle();
  // Has the events of `marks` used again.
  void Reuse(std::vector<MarkedEvent>& marks);
  void DropEnded();

  std::shared_ptr<const CudaDevice> device_;
  const CudaApi& api_;
  std::mutex mutex_;
  std::deque<List> lists_;
  std::vector<CudaEvent> idle_;
};

}  // namespace dwdp
