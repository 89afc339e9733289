// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <memory>
#include <vector>

#include "copy/copier.h"

namespace dwdp {

// Copies to the slot of one layer those experts that the router chose and that the rank lacks, and
// remembers which ones the slot holds. It is for host memory: the CPU reads the router's choice.
class ChosenExperts {
 public:
  struct PeerCopy {
    std::size_t peer;  // the index of the peer whose memory is read
    Copy copy;
  };
  using Expert = std::vector<PeerCopy>;  // the copies of one expert; none if the rank has it
  struct Fetched {
    std::vector<std::size_t> bytes_by_peer;
    std::size_t num_copies = 0;
    std::size_t num_hits = 0;  // chosen experts that the slot held already
  };

  ChosenExperts(std::shared_ptr<Copier> copier, std::vector<Expert> experts, std::size_t num_peers);

  // Copies those of the experts `ids` that are neither the rank's own nor in the slot, each once,
  // and waits for the copies. Negative ids are padding. Id is std::int32_t or std::int64_t.
  template <typename Id>
  Fetched Fetch(const Id* ids, std::size_t num_ids);

  // To be called when the slot is used for another layer: all experts count as missing again.
  void Forget();

 private:
  std::shared_ptr<Copier> copier_;
  std::vector<Expert> experts_;
  std::size_t num_peers_;
  std::vector<bool> is_held_;
  std::vector<std::uint64_t> seen_in_;  // by expert: the number of the last fetch that chose it
  std::uint64_t num_fetches_ = 0;
};

}  // namespace dwdp
