// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "copy/copier.h"
#include "cuda/device.h"

namespace dwdp {

// How far the copies have come that a stream was given. An event behind each of them tells.
//
// The thread that submits calls Begin, Mark and End; any thread may ask. No lock is held while a
// copy is submitted: a call that never returns can be asked about, too.
class CudaProgress {
 public:
  explicit CudaProgress(std::shared_ptr<const CudaDevice> device);
  CudaProgress(const CudaProgress&) = delete;
  CudaProgress& operator=(const CudaProgress&) = delete;
  ~CudaProgress();

  // The copies of a list follow in `stream`, behind what it waits for.
  void Begin(Copier::Ticket ticket, const CopyList& list, CUstream stream);
  // The stream was given so many more of them.
  void Mark(std::size_t num_copies, CUstream stream);
  // The stream was given all of them.
  void End(CUstream stream);
  // Not all of them could be given: the list is forgotten.
  void GiveUp();

  // The first list whose copies haven't ended.
  std::optional<Copier::Progress> First();

 private:
  // Lists of more copies have a mark behind several of them.
  static constexpr std::size_t kMaxMarks = 256;

  struct MarkedEvent {
    CUevent event;
    std::size_t num_copies;  // have ended when it has passed
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
  bool HasPassed(CUevent event) const;
  void DropEnded();

  std::shared_ptr<const CudaDevice> device_;
  const CudaApi& api_;
  std::mutex mutex_;
  std::deque<List> lists_;
  std::vector<CUevent> idle_;
};

}  // namespace dwdp
