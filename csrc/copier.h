// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The seam between the fetch scheduler and what moves bytes: threads here, a copy stream on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace dwdp {

struct Copy {
  std::byte* destination;
  const std::byte* source;
  std::size_t num_bytes;
};

// Copies in rounds: those of one round in any order or at once, rounds one after the other.
//
// Shared with threads that don't hold Python's lock, so it must not be Python that counts its
// owners: nanobind asks `shared_from_this` for one where there is such a thing.
struct CopyList : std::enable_shared_from_this<CopyList> {
  explicit CopyList(std::vector<std::vector<Copy>> all = {}) : rounds(std::move(all)) {}

  std::vector<std::vector<Copy>> rounds;
};

// Runs copy lists one after the other, in the order of their submission.
class Copier {
 public:
  using Ticket = std::uint64_t;

  virtual ~Copier() = default;
  // Starts after everything submitted before. Never blocks.
  virtual Ticket Submit(std::shared_ptr<const CopyList> list) = 0;
  // Drops the rounds that have not begun. Waiting for the ticket still waits for the one that has.
  virtual void Cancel(Ticket ticket) = 0;
  virtual void Wait(Ticket ticket) = 0;
  virtual bool IsDone(Ticket ticket) const = 0;
};

}  // namespace dwdp
