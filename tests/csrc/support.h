// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// Helpers that the tests of the core share.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "host/driver.h"
#include "memory/block.h"

namespace dwdp {

inline const std::size_t kPage = PageBytes();

inline std::shared_ptr<HostDriver> Driver(HostOptions options = {}) {
  options.name = "dwdp-test";
  return std::make_shared<HostDriver>(options);
}

inline std::vector<std::byte> Pattern(std::size_t num_bytes, int seed) {
  std::vector<std::byte> bytes(num_bytes);
  for (std::size_t i = 0; i < num_bytes; ++i) bytes[i] = std::byte((i * 31 + seed) % 251);
  return bytes;
}

inline bool Holds(const std::byte* address, std::size_t num_bytes, int seed) {
  const auto expected = Pattern(num_bytes, seed);
  return std::equal(expected.begin(), expected.end(), address);
}

inline std::shared_ptr<Block> FilledBlock(const std::shared_ptr<MemoryDriver>& driver,
                                          std::size_t num_bytes, std::size_t view_offset,
                                          int seed) {
  auto block = Block::Create(driver, num_bytes, view_offset);
  block->Fill(0, Pattern(num_bytes, seed).data(), num_bytes);
  return block;
}

inline std::shared_ptr<Block> SealedBlock(const std::shared_ptr<MemoryDriver>& driver,
                                          std::size_t num_bytes, std::size_t view_offset,
                                          int seed) {
  auto block = FilledBlock(driver, num_bytes, view_offset, seed);
  block->Seal();
  return block;
}

inline UniqueFd ExportFd(const Block& block) {
  return std::get<UniqueFd>(block.Export(HandleType::kFileDescriptor));
}

inline std::ptrdiff_t NumDescriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return std::distance(begin(all), end(all));
}

inline int NumExpertMaps() {
  std::ifstream maps("/proc/self/maps");
  int count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("dwdp-test") != line.npos;
  return count;
}

// Fails unless `act` throws a DriverError whose message has every one of `parts`.
inline void ExpectRefusal(const std::function<void()>& act, const std::vector<std::string>& parts) {
  try {
    act();
    FAIL() << "expected a DriverError, got none";
  } catch (const DriverError& error) {
    for (const auto& part : parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
}

}  // namespace dwdp
