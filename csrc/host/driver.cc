// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "host/driver.h"

#include <cstring>

#include "base/error.h"
#include "host/reservation.h"

namespace dwdp {

// A memory file is made in the same way for every use.
std::unique_ptr<Allocation> HostDriver::Allocate(std::size_t num_bytes, std::size_t view_offset,
                                                 MemoryUse use) {
  Require(use != MemoryUse::kHostBlock,
          "expected a rank on a GPU for experts in host memory, got a rank on CPUs, all of whose "
          "memory is the host's; leave dwdp.host_experts out");
  std::string warning;
  auto made = HostAllocation::Create(num_bytes, view_offset, options_, &warning);
  Warn(warning);
  return made;
}

std::unique_ptr<Allocation> HostDriver::Import(ShareableHandle handle, std::size_t num_bytes,
                                               std::size_t view_offset) {
  auto* fd = std::get_if<UniqueFd>(&handle);
  Require(fd != nullptr, kNoFabric);
  return HostAllocation::Import(std::move(*fd), num_bytes, view_offset, options_);
}

std::unique_ptr<Reservation> HostDriver::Reserve(std::size_t num_bytes) {
  return std::make_unique<HostReservation>(num_bytes);
}

void HostDriver::Copy(void* destination, const void* source, std::size_t num_bytes) {
  std::memcpy(destination, source, num_bytes);
}

}  // namespace dwdp
