// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The seam between the fetch scheduler and what moves bytes: threads here, a copy stream on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace dwdp {

struct Copy {
  std::byte* destination;
  const std::byte* source;
  std::size_t num_bytes;
};

// Copies that may run in any order, or at once. Kept as the arrays that the CUDA driver takes, so
// that submitting a list makes none.
class CopyRound {
 public:
  using Address = unsigned long long;  // CUdeviceptr, without CUDA's headers

  CopyRound() = default;
  CopyRound(const std::vector<Copy>& copies) {
    for (const Copy& copy : copies) Add(copy);
  }

  void Add(const Copy& copy) {
    destinations_.push_back(reinterpret_cast<Address>(copy.destination));
    sources_.push_back(reinterpret_cast<Address>(copy.source));
    sizes_.push_back(copy.num_bytes);
  }
  std::size_t size() const { return sizes_.size(); }
  bool empty() const { return sizes_.empty(); }
  Copy operator[](std::size_t i) const {
    return {reinterpret_cast<std::byte*>(destinations_[i]),
            reinterpret_cast<const std::byte*>(sources_[i]), sizes_[i]};
  }

  const Address* destinations() const { return destinations_.data(); }
  const Address* sources() const { return sources_.data(); }
  const std::size_t* sizes() const { return sizes_.data(); }

 private:
  std::vector<Address> destinations_;
  std::vector<Address> sources_;
  std::vector<std::size_t> sizes_;
};

// Copies in rounds, one round after the other.
//
// Threads that don't hold Python's lock may drop it and with it the memory, so it must not be
// Python that counts the owners of either: nanobind asks `shared_from_this` where there is such a
// thing.
struct CopyList : std::enable_shared_from_this<CopyList> {
  explicit CopyList(const std::vector<std::vector<Copy>>& all = {},
                    std::vector<std::shared_ptr<const void>> held = {})
      : rounds(all.begin(), all.end()), memory(std::move(held)) {}

  static constexpr int kNoLayer = -1;

  std::vector<CopyRound> rounds;
  std::vector<std::shared_ptr<const void>> memory;  // kept mapped until the copies have ended
  int layer = kNoLayer;                             // whose experts they bring
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

  // How far the copies of a list have come.
  struct Progress {
    Ticket ticket = 0;
    int layer = CopyList::kNoLayer;
    bool has_begun = false;
    std::size_t num_ended = 0;  // of its copies, which end in order but for those of one round
  };

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
  // The first list whose copies haven't ended. Any thread may ask, at any time.
  virtual std::optional<Progress> FirstUnderWay() = 0;
};

}  // namespace dwdp
