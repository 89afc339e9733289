// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "host/reservation.h"

#include <sys/mman.h>

#include "base/error.h"
#include "host/allocation.h"

namespace dwdp {
namespace {

constexpr int kMadvPopulateRead = 22;  // Linux 5.14

}  // namespace

void HostReservation::Map(std::size_t offset, const Allocation& allocation) {
  const auto* file = dynamic_cast<const HostAllocation*>(&allocation);
  Require(file != nullptr,
          "expected a block of host memory for a view of host memory, got another driver's; make "
          "both with the same driver");
  range_.MapFile(offset, file->num_bytes(), PROT_READ, file->fd(), file->file_offset());
}

void HostReservation::MapPrivate(std::size_t offset, std::size_t num_bytes) {
  range_.MapZeroed(offset, num_bytes);
}

std::string HostReservation::Protect() {
  if (::mprotect(address(), num_bytes(), PROT_READ) != 0) ThrowErrno("mprotect of a view");
  ::madvise(address(), num_bytes(), MADV_DONTDUMP);  // a core dump would hold all experts
  return "";
}

void HostReservation::Populate() {
  if (::madvise(address(), num_bytes(), kMadvPopulateRead) == 0) return;
  if (errno != EINVAL) ThrowErrno("madvise(MADV_POPULATE_READ) of a view");
  TouchPages();
}

void HostReservation::TouchPages() const {
  for (std::size_t at = 0; at < num_bytes(); at += PageBytes()) {
    static_cast<void>(*static_cast<volatile std::byte*>(address() + at));
  }
}

}  // namespace dwdp
