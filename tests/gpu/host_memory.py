# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Memory of the driver, on the GPU or on a host NUMA node, through NVIDIA's cuda-bindings."""

import os

import torch
from cuda.bindings import driver as cuda

DESCRIPTOR = cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
ON_GPU = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
ON_NODE = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_HOST_NUMA


def check(returned):
    """What a call of the driver returned, or an error that names the driver's."""
    result, *values = returned
    if result != cuda.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"the driver says {result.name}")
    return values[0] if len(values) == 1 else values


def attribute(name):
    full = getattr(cuda.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return check(cuda.cuDeviceGetAttribute(full, torch.cuda.current_device()))


def is_supported():
    return bool(attribute("HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED"))


def host_node():
    """The node nearest to the GPU; 0 where the driver says that the host has none."""
    return max(0, attribute("HOST_NUMA_ID"))


def properties(location, number):
    wanted = cuda.CUmemAllocationProp()
    wanted.type = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    wanted.requestedHandleTypes = DESCRIPTOR
    wanted.location.type = location
    wanted.location.id = number
    return wanted


class HostBlock:
    """Shareable memory of a place."""

    def __init__(self, num_bytes, handle):
        self.num_bytes = num_bytes
        self.handle = handle

    @classmethod
    def on_host(cls, num_bytes, node):
        return cls(num_bytes, check(cuda.cuMemCreate(num_bytes, properties(ON_NODE, node), 0)))

    @classmethod
    def on_gpu(cls, num_bytes):
        wanted = properties(ON_GPU, torch.cuda.current_device())
        return cls(num_bytes, check(cuda.cuMemCreate(num_bytes, wanted, 0)))

    @staticmethod
    def page_sizes(node):
        flags = cuda.CUmemAllocationGranularity_flags
        sizes = {
            "minimum_kib": flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM,
            "recommended_kib": flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED,
        }
        wanted = properties(ON_NODE, node)
        return {
            name: check(cuda.cuMemGetAllocationGranularity(wanted, flag)) >> 10
            for name, flag in sizes.items()
        }

    def filled_from(self, source):
        """source: uint8 on the GPU."""
        Mapped([self], read_only=False).copy_from(source)
        return self

    def imported(self):
        """The same memory, as a peer would get it."""
        fd = int(check(cuda.cuMemExportToShareableHandle(self.handle, DESCRIPTOR, 0)))
        handle = check(cuda.cuMemImportFromShareableHandle(fd, DESCRIPTOR))
        os.close(fd)
        return HostBlock(self.num_bytes, handle)


class Mapped:
    """Blocks one after the other, where the current GPU may use them until the process ends."""

    def __init__(self, blocks, *, read_only):
        total = sum(block.num_bytes for block in blocks)
        self._start = check(cuda.cuMemAddressReserve(total, 0, 0, 0))
        self.address = int(self._start)
        at = self.address
        for block in blocks:
            check(cuda.cuMemMap(at, block.num_bytes, 0, block.handle, 0))
            at += block.num_bytes
        access = cuda.CUmemAccessDesc()
        access.location.type = ON_GPU
        access.location.id = torch.cuda.current_device()
        flags = cuda.CUmemAccess_flags
        access.flags = (
            flags.CU_MEM_ACCESS_FLAGS_PROT_READ
            if read_only
            else flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        )
        check(cuda.cuMemSetAccess(self._start, total, [access], 1))

    def copy_to(self, target):
        """As much as target takes, in the current stream."""
        self._copy(target.data_ptr(), self.address, target.nbytes)

    def copy_from(self, source):
        self._copy(self.address, source.data_ptr(), source.nbytes)
        torch.cuda.synchronize()

    def _copy(self, destination, source, num_bytes):
        stream = torch.cuda.current_stream().cuda_stream
        check(cuda.cuMemcpyAsync(destination, source, num_bytes, stream))
