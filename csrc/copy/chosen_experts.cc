// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "copy/chosen_experts.h"

#include <string>
#include <utility>

#include "base/error.h"

namespace dwdp {

ChosenExperts::ChosenExperts(std::shared_ptr<Copier> copier, std::vector<Expert> experts,
                             std::size_t num_peers)
    : copier_(std::move(copier)),
      experts_(std::move(experts)),
      num_peers_(num_peers),
      is_held_(experts_.size()),
      seen_in_(experts_.size()) {
  for (const Expert& expert : experts_) {
    for (const auto& [peer, copy] : expert) {
      Require(peer < num_peers_, "expected a peer below " + std::to_string(num_peers_) + ", got " +
                                     std::to_string(peer));
    }
  }
}

template <typename Id>
ChosenExperts::Fetched ChosenExperts::Fetch(const Id* ids, std::size_t num_ids) {
  Fetched fetched{.bytes_by_peer = std::vector<std::size_t>(num_peers_)};
  auto list = std::make_shared<CopyList>();
  auto& round = list->rounds.emplace_back();
  std::vector<std::size_t> brought;
  ++num_fetches_;
  for (std::size_t i = 0; i < num_ids; ++i) {
    if (ids[i] < 0) continue;
    const auto id = static_cast<std::size_t>(ids[i]);
    Require(id < experts_.size(), "expected an expert below " + std::to_string(experts_.size()) +
                                      ", the router chose " + std::to_string(id));
    if (std::exchange(seen_in_[id], num_fetches_) == num_fetches_) continue;
    const Expert& expert = experts_[id];
    if (expert.empty()) continue;
    if (is_held_[id]) {
      ++fetched.num_hits;
      continue;
    }
    brought.push_back(id);
    for (const auto& [peer, copy] : expert) {
      round.Add(copy);
      list->peers.push_back(static_cast<int>(peer));
      fetched.bytes_by_peer[peer] += copy.num_bytes;
    }
  }
  fetched.num_copies = round.size();
  if (!round.empty()) copier_->Wait(copier_->Submit(std::move(list), Copier::kCpu), Copier::kCpu);
  for (const std::size_t id : brought) is_held_[id] = true;
  return fetched;
}

void ChosenExperts::Forget() { is_held_.assign(is_held_.size(), false); }

template ChosenExperts::Fetched ChosenExperts::Fetch(const std::int32_t*, std::size_t);
template ChosenExperts::Fetched ChosenExperts::Fetch(const std::int64_t*, std::size_t);

}  // namespace dwdp
