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
// Threads that don't hold Python's lock may drop it and with it the memory, so it must not be
// Python that counts the owners of either: nanobind asks `shared_from_this` where there is such a
// thing.
struct CopyList : std::enable_shared_from_this<CopyList> {
  explicit CopyList(std::vector<std::vector<Copy>> all = {},
                    std::vector<std::shared_ptr<const void>> held = {})
      : rounds(std::move(all)), memory(std::move(held)) {}

  std::vector<std::vector<Copy>> rounds;
  std::vector<std::shared_ptr<const void>> memory;  // kept mapped until the copies have ended
};

// Runs copy lists one after the other, in the order of their submission.
//
// Whoever reads and frees the destinations works in `stream`, a CUDA stream's handle, and all that
// it was given before a call comes before what the call orders. Where the CPU is the reader, the
// calling thread is its own stream, and the handle is kCpu.
class Copier {
 public:
  using Ticket = std::uint64_t;
  using Stream = std::uintptr_t;
  static constexpr Stream kCpu = 0;

  virtual ~Copier() = default;
  // Starts after everything submitted before, and after what `stream` has to do now.
  // Never blocks.
  virtual Ticket Submit(std::shared_ptr<const CopyList> list, Stream stream) = 0;
  // Drops the rounds that have not begun, where there is a way back. Waiting for the ticket still
  // waits for those that have.
  virtual void Cancel(Ticket ticket) = 0;
  // What `stream` is given from now on comes after the copies.
  virtual void Wait(Ticket ticket, Stream stream) = 0;
  virtual bool IsDone(Ticket ticket) const = 0;
  // Blocks until no copy is under way.
  virtual void Drain() = 0;
};

}  // namespace dwdp
