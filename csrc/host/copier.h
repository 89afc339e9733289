// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>

#include "copy/copier.h"

namespace dwdp {

// Threads that copy host memory, read by the CPU: Wait blocks. What is submitted and not begun
// when it goes is dropped.
class HostCopier : public Copier {
 public:
  // `cores` are those its threads may run on; empty: those of the thread that makes it.
  HostCopier(std::size_t num_threads, const std::vector<int>& cores);
  HostCopier(const HostCopier&) = delete;
  HostCopier& operator=(const HostCopier&) = delete;
  ~HostCopier() override;

  Ticket Submit(std::shared_ptr<const CopyList> list, Stream stream) override;
  void Cancel(Ticket ticket) override;
  void Wait(Ticket ticket, Stream stream) override;
  bool IsDone(Ticket ticket) const override;
  void Drain() override;
  std::optional<Progress> FirstUnderWay() override;

 private:
  struct Job {
    Ticket ticket;
    std::shared_ptr<const CopyList> list;
    std::size_t round = 0;
    std::size_t num_begun = 0;  // of the round's copies
    std::size_t num_ended = 0;
    bool is_cancelled = false;
  };

  void Work();
  bool HasCopy() const;
  bool HasEnded(Ticket ticket) const { return num_done_ >= ticket || dropped_.contains(ticket); }
  void EndCopy();
  void EndJobs();

  mutable std::mutex mutex_;
  std::condition_variable has_work_;
  std::condition_variable has_ended_;
  std::deque<Job> jobs_;  // the first one runs
  Ticket num_submitted_ = 0;
  Ticket num_done_ = 0;       // tickets up to here
  std::set<Ticket> dropped_;  // and these, cancelled before they began
  bool is_stopping_ = false;
  std::vector<std::jthread> threads_;
};

}  // namespace dwdp
