// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include "host/address_range.h"
#include "memory/driver.h"

namespace dwdp {

// Addresses for a view of memory files, aligned to 2 MiB.
class HostReservation : public Reservation {
 public:
  explicit HostReservation(std::size_t num_bytes) : range_(num_bytes) {}

  std::byte* address() const override { return range_.address(); }
  std::size_t num_bytes() const override { return range_.num_bytes(); }
  void Map(std::size_t offset, const Allocation& allocation) override;
  void MapPrivate(std::size_t offset, std::size_t num_bytes) override;
  std::string Protect() override;
  void Populate() override;

 private:
  void TouchPages() const;

  AddressRange range_;
};

}  // namespace dwdp
