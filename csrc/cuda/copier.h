// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <array>
#include <type_traits>

#include "copy/copier.h"
#include "cuda/device.h"
#include "cuda/progress.h"

namespace dwdp {

struct CudaCopierOptions {
  // A whole round in one call, where the driver can; else one call per copy. Drivers have crashed
  // and hung on the one call, and no GPU has shown it to be faster.
  bool use_batches = false;
  // Ask for the copy engine also inside one GPU, where the driver would take a kernel.
  bool prefer_overlap = true;
  // The copy stream goes before others where both want the same engine.
  bool high_priority = true;
};

// A stream of copies beside the streams that compute. Events order them; the host never waits.
//
// * One thread uses it: the one that runs the model. Others may ask how far it has come.
// * It refuses streams under capture: a batch of copies would be lost there without an error.
class CudaCopier : public Copier {
 public:
  CudaCopier(std::shared_ptr<const CudaDevice> device, CudaCopierOptions options);
  CudaCopier(const CudaCopier&) = delete;
  CudaCopier& operator=(const CudaCopier&) = delete;
  ~CudaCopier() override;

  Ticket Submit(std::shared_ptr<const CopyList> list, Stream stream) override;
  // What a GPU has been given can't be taken back.
  void Cancel(Ticket) override {}
  void Wait(Ticket ticket, Stream stream) override;
  bool IsDone(Ticket ticket) const override;
  void Drain() override;
  std::optional<Progress> FirstUnderWay() override { return progress_.First(); }

  bool uses_batches() const { return use_batches_; }

 private:
  // Tickets share events in turn. A later ticket's event is safe to wait for, copies being in
  // order; the ring only keeps waits from being longer than they must be.
  static constexpr std::size_t kNumEvents = 64;
  // Submissions of tens of thousands have crashed drivers.
  static constexpr std::size_t kMaxBatch = 1024;

  void RequireUncaptured(CUstream stream) const;
  // Gives the copy stream all copies of a list.
  void Run(const CopyList& list);
  void RequireSubmitted(Ticket ticket) const;
  void RunRound(const CopyRound& round);
  void CopyBatch(const CopyRound& round, std::size_t first, std::size_t num_copies);
  void CopyOneByOne(const CopyRound& round);
  void Release();

  std::shared_ptr<const CudaDevice> device_;
  const CudaApi& api_;
  bool use_batches_;
  CUmemcpyAttributes attributes_ = {};  // of every batch
  // One index would do; drivers have been seen to read one for every copy.
  std::vector<std::size_t> attribute_of_;
  CUstream copy_stream_ = nullptr;
  CUevent gate_ = nullptr;  // what a computing stream had to do when copies were submitted
  std::array<CUevent, kNumEvents> done_ = {};
  Ticket num_submitted_ = 0;
  CudaProgress progress_;
};

}  // namespace dwdp
