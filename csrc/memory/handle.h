// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include <map>
#include <optional>
#include <string>
#include <variant>

#include "base/unique_fd.h"

namespace dwdp {

// How one process names memory to another: on one host, and between hosts of one NVLink domain.
enum class HandleType { kFileDescriptor, kFabric };

// UniqueFd for kFileDescriptor; the bytes of a CUmemFabricHandle, which nobody owns, for kFabric.
using ShareableHandle = std::variant<UniqueFd, std::string>;

// By each type of handle that a kind of memory knows: why it can't share it, or nothing if it can.
using HandleObstacles = std::map<HandleType, std::optional<std::string>>;

}  // namespace dwdp
