// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <vector>

#include "memory_driver.h"

namespace dwdp {

// A reserved address range, aligned to 2 MiB, unmapped when it goes.
class HostReservation : public Reservation {
 public:
  explicit HostReservation(std::size_t num_bytes);
  ~HostReservation() override;
  HostReservation(const HostReservation&) = delete;
  HostReservation& operator=(const HostReservation&) = delete;

  std::byte* address() const override { return address_; }
  std::size_t num_bytes() const override { return num_bytes_; }
  void Map(std::size_t offset, const Allocation& allocation) override;
  void MapPrivate(std::size_t offset, std::size_t num_bytes) override;
  void Protect() override;

 private:
  void Populate();

  std::byte* address_ = nullptr;
  std::size_t num_bytes_;
};

}  // namespace dwdp
