// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#pragma once

#include "cuda/context.h"
#include "memory/handle.h"

namespace dwdp {

// Finds what stands in the way of each type of handle. The GPU's attributes tell; for fabric
// handles a page is also exported, because a GPU may have the attribute and still be refused.
HandleObstacles FindHandleObstacles(const CudaContext& context);

// Returns nothing if the GPU has the attribute CU_DEVICE_ATTRIBUTE_`name`, else a sentence that
// says that it lacks it.
std::optional<std::string> FindAttributeObstacle(const CudaContext& context,
                                                 CUdevice_attribute attribute,
                                                 const std::string& name);

// The properties of memory on this GPU that can't be exported.
CUmemAllocationProp LocalProperties(int ordinal);

// Returns nothing if the GPU can map memory of the host that the driver allocates, else the reason.
std::optional<std::string> FindHostObstacle(const CudaContext& context);

// The properties of memory on the host's NUMA node that is nearest to the GPU. It can be exported
// by file descriptor.
CUmemAllocationProp HostProperties(const CudaContext& context);

// The properties of memory on this GPU that can be exported by every type of handle without an
// obstacle.
CUmemAllocationProp ShareableProperties(int ordinal, const HandleObstacles& obstacles);

}  // namespace dwdp
