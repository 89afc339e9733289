// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <array>
#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <variant>

#include "base/unique_fd.h"

namespace dwdp {

// The types of handle by which a process names its memory to another one. File descriptors work on
// one host, fabric handles also between the hosts of one NVLink domain.
enum class HandleType { kFileDescriptor, kFabric };

// The bytes of a CUmemFabricHandle, which needs no closing.
using FabricHandle = std::array<std::byte, 64>;

// A UniqueFd for kFileDescriptor, a FabricHandle for kFabric.
using ShareableHandle = std::variant<UniqueFd, FabricHandle>;

// For each type of handle that a kind of memory knows: the reason why memory can't be shared by it,
// or nothing if it can.
using HandleObstacles = std::map<HandleType, std::optional<std::string>>;

}  // namespace dwdp
