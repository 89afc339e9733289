// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "host/copier.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "base/error.h"

namespace dwdp {
namespace {

void BindTo(std::jthread& thread, const std::vector<int>& cores) {
  if (cores.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores) CPU_SET(static_cast<std::size_t>(core), &set);
  errno = ::pthread_setaffinity_np(thread.native_handle(), sizeof(set), &set);
  if (errno != 0) ThrowErrno("binding a copier's thread to its cores");
}

}  // namespace

HostCopier::HostCopier(std::size_t num_threads, const std::vector<int>& cores) {
  Require(num_threads > 0, "expected at least one thread to copy with, got none");
  try {
    for (std::size_t i = 0; i < num_threads; ++i) {
      threads_.emplace_back([this] { Work(); });
      ::pthread_setname_np(threads_.back().native_handle(), "dwdp-copier");
      BindTo(threads_.back(), cores);
    }
  } catch (...) {
    {
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
    }
    has_work_.notify_all();
    threads_.clear();
    throw;
  }
}

HostCopier::~HostCopier() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  has_work_.notify_all();
  threads_.clear();  // joins
}

Copier::Ticket HostCopier::Submit(std::shared_ptr<const CopyList> list, Stream) {
  const std::lock_guard lock(mutex_);
  const Ticket ticket = ++num_submitted_;
  const std::size_t num_copies = IsRecorded(ticket) ? list->num_copies() : 0;
  jobs_.push_back({.ticket = ticket, .list = std::move(list), .num_copies = num_copies});
  EndJobs();  // an empty list is done at once
  has_work_.notify_all();
  return num_submitted_;
}

void HostCopier::Cancel(Ticket ticket) {
  const std::lock_guard lock(mutex_);
  const auto job = std::ranges::find(jobs_, ticket, &Job::ticket);
  if (job == jobs_.end()) return;
  if (job->round == 0 && job->num_begun == 0) {  // it ends now, ahead of the jobs before it
    jobs_.erase(job);
    dropped_.insert(ticket);
    has_ended_.notify_all();
    has_work_.notify_all();
  } else {
    job->is_cancelled = true;
  }
  EndJobs();
}

void HostCopier::Wait(Ticket ticket, Stream) {
  std::unique_lock lock(mutex_);
  Require(ticket <= num_submitted_, "expected the ticket of a submitted list, got " +
                                        std::to_string(ticket) + " of " +
                                        std::to_string(num_submitted_));
  has_ended_.wait(lock, [&] { return HasEnded(ticket); });
}

bool HostCopier::IsDone(Ticket ticket) const {
  const std::lock_guard lock(mutex_);
  return HasEnded(ticket);
}

void HostCopier::Drain() {
  std::unique_lock lock(mutex_);
  has_ended_.wait(lock, [this] { return jobs_.empty(); });
}

std::optional<Copier::Progress> HostCopier::FirstUnderWay() {
  const std::lock_guard lock(mutex_);
  if (jobs_.empty()) return std::nullopt;
  const Job& job = jobs_.front();
  Progress progress{
      .ticket = job.ticket, .layer = job.list->layer, .num_ended = job.num_before + job.num_ended};
  progress.has_begun = job.num_begun > 0 || progress.num_ended > 0;
  return progress;
}

void HostCopier::StartRecording(const RecordingLimits& limits) {
  const std::lock_guard lock(mutex_);
  log_.emplace(limits.max_spans);
  first_recorded_ = num_submitted_ + 1;
  last_recorded_ = std::numeric_limits<Ticket>::max();
  max_marks_ = limits.max_marks;
  marks_ns_.clear();
}

std::int64_t HostCopier::Mark(Stream) {
  if (marks_ns_.size() >= max_marks_) return kNoMark;
  marks_ns_.push_back(NowNs());
  return static_cast<std::int64_t>(marks_ns_.size()) - 1;
}

void HostCopier::EndRecording() {
  const std::lock_guard lock(mutex_);
  last_recorded_ = std::min(last_recorded_, num_submitted_);
  max_marks_ = 0;
}

Recording HostCopier::TakeRecording() {
  EndRecording();
  std::unique_lock lock(mutex_);
  if (!log_) return {};
  has_ended_.wait(lock, [this] { return jobs_.empty() || jobs_.front().ticket > last_recorded_; });
  Recording taken{std::exchange(marks_ns_, {}), log_->Take(), log_->num_dropped_bytes()};
  log_.reset();
  return taken;
}

// The recording may have been replaced by another one while the copy ran.
void HostCopier::Note(std::size_t copy, std::size_t num_bytes, std::int64_t begin_ns,
                      std::int64_t end_ns) {
  const Job& job = jobs_.front();
  if (!IsRecorded(job.ticket)) return;
  log_->Add({job.ticket, job.list->layer, job.num_copies},
            {job.list->peer(copy), num_bytes, begin_ns, end_ns, end_ns - begin_ns});
}

void HostCopier::Work() {
  std::unique_lock lock(mutex_);
  while (true) {
    has_work_.wait(lock, [this] { return is_stopping_ || HasCopy(); });
    if (is_stopping_) return;
    Job& job = jobs_.front();
    const std::size_t number = job.num_before + job.num_begun;
    const Copy copy = job.list->rounds[job.round][job.num_begun++];
    const bool is_recorded = IsRecorded(job.ticket);
    lock.unlock();
    const std::int64_t begin_ns = is_recorded ? NowNs() : 0;
    std::memcpy(copy.destination, copy.source, copy.num_bytes);
    const std::int64_t end_ns = is_recorded ? NowNs() : 0;
    lock.lock();
    if (is_recorded) Note(number, copy.num_bytes, begin_ns, end_ns);
    EndCopy();
  }
}

bool HostCopier::HasCopy() const {
  if (jobs_.empty() || jobs_.front().is_cancelled) return false;
  return jobs_.front().num_begun < jobs_.front().list->rounds[jobs_.front().round].size();
}

// The copy belongs to the front job, because a job stays in front while one of its copies runs.
void HostCopier::EndCopy() {
  Job& job = jobs_.front();
  ++job.num_ended;
  EndJobs();
  has_work_.notify_all();
}

// Ends the rounds and jobs that have nothing left to copy, up to the first that has.
void HostCopier::EndJobs() {
  while (!jobs_.empty()) {
    Job& job = jobs_.front();
    if (job.num_ended < job.num_begun) return;
    const auto& rounds = job.list->rounds;
    const bool has_left = job.round < rounds.size() && job.num_begun < rounds[job.round].size();
    if (has_left && !job.is_cancelled) return;
    job.num_begun = job.num_ended = 0;
    if (job.round < rounds.size()) job.num_before += rounds[job.round].size();
    if (!job.is_cancelled && ++job.round < rounds.size()) continue;
    num_done_ = job.ticket;
    dropped_.erase(dropped_.begin(), dropped_.upper_bound(num_done_));
    jobs_.pop_front();
    has_ended_.notify_all();
  }
}

}  // namespace dwdp
