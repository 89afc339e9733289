// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The seam between blocks and views, which are written once, and the kinds of memory of which they
// are made.
//
// * Sizes and offsets are in bytes. Those of allocations and of mappings are multiples of the
//   driver's granularity.
// * An allocation is mapped whole or not at all. cuMemMap demands this; host memory does the same.
// * An owner fills an allocation through its staging address, then seals it. Importers only ever
//   see sealed allocations.
// * A reservation is an address range into which pages are mapped later. Protect makes it
//   read-only.
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
  // The address where the owner writes. It is null once sealed, and for imports.
  virtual std::byte* staging() const = 0;
  // Ends all writing by the owner. If it throws, the allocation stays open.
  virtual void Seal() = 0;
  // Whether the kernel refuses every write to this memory, through any mapping.
  virtual bool is_write_sealed() const = 0;
  virtual ShareableHandle Export(HandleType type) const = 0;
};

class Reservation {
 public:
  virtual ~Reservation() = default;
  virtual std::byte* address() const = 0;
  virtual std::size_t num_bytes() const = 0;
  // Maps all of an allocation at `offset`, read-only. The mapping outlives the allocation.
  virtual void Map(std::size_t offset, const Allocation& allocation) = 0;
  // Maps new pages of this process at `offset`. They are zeroed, and writable until Protect.
  virtual void MapPrivate(std::size_t offset, std::size_t num_bytes) = 0;
  // Makes the whole range read-only. Returns a warning if part of it can't be, else "".
  virtual std::string Protect() = 0;
  // Fills the page tables now: the first access to a page costs two to three times a later one.
  virtual void Populate() = 0;
};

// A kind of memory. Views and slot pages share ownership of their driver, and a thread that drops
// one of them may not hold Python's lock: see CopyList for what follows from that.
class MemoryDriver : public std::enable_shared_from_this<MemoryDriver> {
 public:
  static constexpr int kNoGpu = -1;

  virtual ~MemoryDriver() = default;
  virtual std::string kind() const = 0;
  // The ordinal of the GPU that reads this memory, or kNoGpu if the CPU reads it.
  virtual int gpu() const = 0;
  virtual std::size_t granularity() const = 0;
  virtual HandleObstacles obstacles() const = 0;
  // `view_offset` is where views will map the allocation.
  virtual std::unique_ptr<Allocation> Allocate(std::size_t num_bytes, std::size_t view_offset,
                                               MemoryUse use) = 0;
  // Owns `handle` from here on, and closes it if the import fails.
  virtual std::unique_ptr<Allocation> Import(ShareableHandle handle, std::size_t num_bytes,
                                             std::size_t view_offset) = 0;
  virtual std::unique_ptr<Reservation> Reserve(std::size_t num_bytes) = 0;
  // Returns when the copy has ended; for start-up only.
  virtual void Copy(void* destination, const void* source, std::size_t num_bytes) = 0;

  // Adds `warning` to the list, unless it is empty or there already. Any thread may call this.
  void Warn(const std::string& warning);
  std::vector<std::string> warnings() const;

 private:
  mutable std::mutex warning_;
  std::vector<std::string> warnings_;
};

}  // namespace dwdp
