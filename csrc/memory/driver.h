// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The seam between blocks and views, written once, and the memory they are made of.
//
// * An allocation is mapped whole or not at all (what cuMemMap demands, kept on every memory).
// * An owner fills an allocation through its staging address, then seals it; importers only ever
//   see it sealed.
// * A reservation is an address range whose pages are given later; finished, it is read-only.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "memory/handle.h"
#include "memory/use.h"

namespace dwdp {

class Allocation {
 public:
  virtual ~Allocation() = default;
  virtual std::size_t num_bytes() const = 0;
  // Where the owner writes; null once sealed, and for imports.
  virtual std::byte* staging() const = 0;
  // Throwing, it leaves the allocation open.
  virtual void Seal() = 0;
  // Whether the kernel itself refuses writes through every alias.
  virtual bool is_write_sealed() const = 0;
  virtual ShareableHandle Export(HandleType type) const = 0;
};

class Reservation {
 public:
  virtual ~Reservation() = default;
  virtual std::byte* address() const = 0;
  virtual std::size_t num_bytes() const = 0;
  // Maps all of an allocation, read-only. The mapping outlives the allocation.
  virtual void Map(std::size_t offset, const Allocation& allocation) = 0;
  // Zeroed local pages, writable until Protect.
  virtual void MapPrivate(std::size_t offset, std::size_t num_bytes) = 0;
  // Makes all of it read-only. Returns a warning where that could not be done, else nothing.
  virtual std::string Protect() = 0;
  // Fills the page tables now: a first touch costs two to three times a later one.
  virtual void Populate() = 0;
};

// Views and slot pages share it, and whoever drops one of them may not hold Python's lock.
class MemoryDriver : public std::enable_shared_from_this<MemoryDriver> {
 public:
  static constexpr int kNoGpu = -1;

  virtual ~MemoryDriver() = default;
  virtual std::string kind() const = 0;
  // The ordinal of the GPU whose memory it is, or kNoGpu for memory that the CPU reads.
  virtual int gpu() const = 0;
  virtual std::size_t granularity() const = 0;
  virtual HandleObstacles obstacles() const = 0;
  // `view_offset` is where views will map the allocation.
  virtual std::unique_ptr<Allocation> Allocate(std::size_t num_bytes, std::size_t view_offset,
                                               MemoryUse use) = 0;
  // Takes the handle; refusing closes it.
  virtual std::unique_ptr<Allocation> Import(ShareableHandle handle, std::size_t num_bytes,
                                             std::size_t view_offset) = 0;
  virtual std::unique_ptr<Reservation> Reserve(std::size_t num_bytes) = 0;
  // Synchronous; for start-up only.
  virtual void Copy(void* destination, const void* source, std::size_t num_bytes) = 0;

  // Notes a warning once; an empty one is none. Threads may call it at the same time.
  void Warn(const std::string& warning);
  std::vector<std::string> warnings() const;

 private:
  mutable std::mutex warning_;
  std::vector<std::string> warnings_;
};

}  // namespace dwdp
