// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <map>
#include <optional>
#include <string>
#include <variant>

#include "base/unique_fd.h"

namespace dwdp {

// The types of handle by which a process names its memory to another one. File descriptors work on
// one host, fabric handles also between the hosts of one NVLink domain.
enum class HandleType { kFileDescriptor, kFabric };

// A UniqueFd for kFileDescriptor. For kFabric the bytes of a CUmemFabricHandle, which needs no
// closing.
using ShareableHandle = std::variant<UniqueFd, std::string>;

// For each type of handle that a kind of memory knows: the reason why memory can't be shared by it,
// or nothing if it can.
using HandleObstacles = std::map<HandleType, std::optional<std::string>>;

}  // namespace dwdp
