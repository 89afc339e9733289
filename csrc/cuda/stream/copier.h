// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <optional>
#include <type_traits>
#include <vector>

#include "copy/copier.h"
#include "cuda/device.h"
#include "cuda/stream/handles.h"
#include "cuda/stream/progress.h"
#include "cuda/stream/recorder.h"

namespace dwdp {

struct CudaCopierOptions {
  // Whether a round is submitted by one call, where the driver has one for batches, instead of by
  // one call per copy. Drivers have crashed and hung on batches, and on no GPU were batches faster.
  bool use_batches = false;
  // For batches: asks for the copy engine also inside one GPU, where the driver would run a kernel.
  bool prefer_overlap = true;
  // Whether the copy stream gets the highest priority instead of the lowest.
  bool high_priority = true;
};

// Copies in a stream of its own, beside the streams that compute. Events order the streams; the
// host waits in Drain and in the destructor only.
//
// * Only the thread that runs the model uses it. Other threads may call FirstUnderWay.
// * It refuses streams under graph capture: a batch of copies would be lost there without an error.
class CudaCopier : public Copier {
 public:
  CudaCopier(std::shared_ptr<const CudaDevice> device, CudaCopierOptions options);
  CudaCopier(const CudaCopier&) = delete;
  CudaCopier& operator=(const CudaCopier&) = delete;
  ~CudaCopier() override;

  Ticket Submit(std::shared_ptr<const CopyList> list, Stream stream) override;
  // Does nothing: copies that were enqueued on a GPU can't be taken back.
  void Cancel(Ticket) override {}
  void Wait(Ticket ticket, Stream stream) override;
  bool IsDone(Ticket ticket) const override;
  void Drain() override;
  std::optional<Progress> FirstUnderWay() override { return progress_.First(); }

  void StartRecording(const RecordingLimits& limits) override;
  std::int64_t Mark(Stream stream) override;
  void EndRecording() override;
  Recording TakeRecording() override;

  bool uses_batches() const { return use_batches_; }

 private:
  // The tickets use these events in turn. When a later ticket has taken over a ticket's event, a
  // wait is longer than it must be, but still safe: lists run in the order of their submission.
  static constexpr std::size_t kNumEvents = 64;
  // The most copies of one batch. Batches of tens of thousands have crashed drivers.
  static constexpr std::size_t kMaxBatch = 1024;

  void RequireUncaptured(CUstream stream) const;
  // Enqueues all copies of a list in the copy stream.
  void Run(const CopyList& list);
  // To be called when so many copies of a round, from `first` on, have been enqueued.
  void NoteEnqueued(const CopyRound& round, std::size_t first, std::size_t num_copies);
  void RequireSubmitted(Ticket ticket) const;
  void RunRound(const CopyRound& round);
  void CopyBatch(const CopyRound& round, std::size_t first, std::size_t num_copies);
  void CopyOneByOne(const CopyRound& round);

  std::shared_ptr<const CudaDevice> device_;
  const CudaApi& api_;
  bool use_batches_;
  CUmemcpyAttributes attributes_ = {};  // of every batch
  // The index of each copy's attributes, always 0. One index per batch should do, but drivers have
  // been seen to read one for every copy.
  std::vector<std::size_t> attribute_of_;
  CudaStream copy_stream_;
  CudaEvent gate_;  // recorded in the computing stream by Submit; the copies wait for it
  std::vector<CudaEvent> done_;
  Ticket num_submitted_ = 0;
  CudaProgress progress_;
  std::optional<CudaRecorder> recorder_;  // while a recording isn't taken
};

}  // namespace dwdp
