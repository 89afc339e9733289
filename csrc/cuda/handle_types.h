// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include "cuda/context.h"
#include "memory/handle.h"

namespace dwdp {

// By attribute, and fabric handles also on a page: a GPU may have the attribute and still be
// refused.
HandleObstacles FindHandleObstacles(const CudaContext& context);

// Nothing if the GPU has the attribute, else that it lacks it.
std::optional<std::string> FindAttributeObstacle(const CudaContext& context,
                                                 CUdevice_attribute attribute,
                                                 const std::string& name);

// Memory pinned to this GPU that no other process can be given.
CUmemAllocationProp LocalProperties(int ordinal);

// Nothing if the GPU can map memory of the host that the driver allocates, else why not.
std::optional<std::string> FindHostObstacle(const CudaContext& context);

// Memory of the host's NUMA node that is nearest to the GPU, exportable by file descriptor.
CUmemAllocationProp HostProperties(const CudaContext& context);

// Memory pinned to this GPU, exportable by every type of handle without an obstacle.
CUmemAllocationProp ShareableProperties(int ordinal, const HandleObstacles& obstacles);

}  // namespace dwdp
