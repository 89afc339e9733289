// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <memory>
#include <vector>

#include "copy/copier.h"

namespace dwdp {

// The missing experts of one layer, and which of them its slot holds now. Brings those that the
// router chose, each once. On host memory: the ids are read by the CPU.
class ChosenExperts {
 public:
  struct PeerCopy {
    std::size_t peer;  // whose memory it reads
    Copy copy;
  };
  using Expert = std::vector<PeerCopy>;  // empty: this rank needs no copy of it
  struct Fetched {
    std::vector<std::size_t> bytes_by_peer;
    std::size_t num_copies = 0;
    std::size_t num_hits = 0;  // chosen, missing, and in the slot already
  };

  ChosenExperts(std::shared_ptr<Copier> copier, std::vector<Expert> experts, std::size_t num_peers);

  // Copies what is missing of `ids` and waits for it. Ids below 0 stand for padding.
  template <typename Id>
  Fetched Fetch(const Id* ids, std::size_t num_ids);

  // The slot holds something else now.
  void Forget();

 private:
  std::shared_ptr<Copier> copier_;
  std::vector<Expert> experts_;
  std::size_t num_peers_;
  std::vector<bool> is_held_;
  std::vector<std::uint64_t> seen_in_;  // by expert: the last fetch that met it
  std::uint64_t num_fetches_ = 0;
};

}  // namespace dwdp
