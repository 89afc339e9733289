// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "copy/copier.h"

namespace dwdp {

// Copies host memory in threads of its own. The CPU reads the destinations, so Wait blocks. The
// destructor drops all copies that have not begun.
class HostCopier : public Copier {
 public:
  // The threads may run on `cores` or, if that is empty, on the cores of the calling thread.
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

  void StartRecording(const RecordingLimits& limits) override;
  std::int64_t Mark(Stream stream) override;
  void EndRecording() override;
  Recording TakeRecording() override;

 private:
  struct Job {
    Ticket ticket;
    std::shared_ptr<const CopyList> list;
    std::size_t round = 0;
    std::size_t num_before = 0;  // copies of the rounds before
    std::size_t num_copies = 0;  // copies of all rounds, if they are recorded
    std::size_t num_begun = 0;   // copies of the current round
    std::size_t num_ended = 0;   // copies of the current round
    bool is_cancelled = false;
  };

  void Work();
  bool HasCopy() const;
  bool HasEnded(Ticket ticket) const { return num_done_ >= ticket || dropped_.contains(ticket); }
  void EndCopy();
  void EndJobs();
  bool IsRecorded(Ticket ticket) const {
    return log_ && first_recorded_ <= ticket && ticket <= last_recorded_;
  }
  // Notes a copy of the front job.
  void Note(std::size_t copy, std::size_t num_bytes, std::int64_t begin_ns, std::int64_t end_ns);

  mutable std::mutex mutex_;
  std::condition_variable has_work_;
  std::condition_variable has_ended_;
  std::deque<Job> jobs_;  // the first one runs
  Ticket num_submitted_ = 0;
  Ticket num_done_ = 0;       // all tickets up to this one are done
  std::set<Ticket> dropped_;  // later tickets that are done: cancelled before they began
  bool is_stopping_ = false;
  std::optional<SpanLog> log_;  // while a recording isn't taken
  Ticket first_recorded_ = 0;
  Ticket last_recorded_ = 0;
  std::size_t max_marks_ = 0;  // this and the marks are used by the recording thread only
  std::vector<std::int64_t> marks_ns_;
  std::vector<std::jthread> threads_;
};

}  // namespace dwdp
