# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Memory of a GPU of the fake driver, for ranks whose kernels run on the CPU.

A vLLM plugin (fake_gpu_plugin) gives the ranks of an engine this memory, in the environment that
cuda_stand_in.py defines. More environment variables:

* FAKE_GPU_BYTES: the free memory of each rank's GPU.
* FAKE_GPU_FULL: a kind of memory (a key of ALLOCATED_IN) that rank 1 can't allocate.
* FAKE_GPU_HANGS: a copy of rank 1 doesn't end; the rank's copy watch looks every WATCH_INTERVAL_S.
"""

import functools
import os

from support.fake_cuda import OUT_OF_MEMORY, FakeCuda, bytes_of

from vllm_dwdp._core import CudaCopier
from vllm_dwdp.device import MEMORY_OF_DEVICE, HostMemory
from vllm_dwdp.device.numa import own_numa_node
from vllm_dwdp.fetch.copy_watch import CopyWatch
from vllm_dwdp.memory.expert_views import ExpertViews
from vllm_dwdp.memory.local_shard import LocalShard
from vllm_dwdp.memory.slots import Slots

FAULTY_RANK = 1
WATCH_INTERVAL_S = 0.1
HUNG_COPY = 3
ALLOCATED_IN = {
    "block": (LocalShard, "_fill_block", "cuMemCreate"),
    "fringe": (LocalShard, "_create_fringe", "cuMemCreate"),
    "slot": (Slots, "__init__", "cuMemCreate"),
    "private page": (ExpertViews, "_finish", "cuMemCreate"),
    "reservation": (ExpertViews, "build", "cuMemAddressReserve"),
}
"""By kind of memory: class and method that allocate it first of all, and the driver's function."""


class FakeGpuMemory(HostMemory):
    """A CPU rank's memory, managed through the CUDA driver's calls."""

    kind = "cuda"

    def __init__(self, rank):
        self.numa_node = own_numa_node()
        fake = FakeCuda()
        if rank == FAULTY_RANK and "FAKE_GPU_FULL" in os.environ:
            fill_up(fake, os.environ["FAKE_GPU_FULL"])
        if rank == FAULTY_RANK and "FAKE_GPU_HANGS" in os.environ:
            hang_once_watched(fake)
        self.driver = self.slot_driver = self._cuda = fake.driver(rank)

    def free_bytes(self):
        return int(os.environ.get("FAKE_GPU_BYTES", super().free_bytes()))

    def bytes_of(self, view):
        return bytes_of(view)

    def make_copier(self, config):
        return CudaCopier(self._cuda, use_batches=config.batched_copies)


def fill_up(fake, kind):
    """Make the first allocation of this kind in this process fail."""
    owner, name, symbol = ALLOCATED_IN[kind]
    allocate = getattr(owner, name)

    @functools.wraps(allocate)
    def fail(*args, **kwargs):
        fake.fail(symbol, 1, OUT_OF_MEMORY)
        made = allocate(*args, **kwargs)
        fake.fail(symbol, 0)  # the method allocated nothing
        return made

    setattr(owner, name, fail)


def hang_once_watched(fake):
    """Make one of the first copies hang once the copy watch runs, and make the watch look often."""
    start = CopyWatch.start

    def start_and_hang(watch):
        start(watch, interval_s=WATCH_INTERVAL_S)
        fake.hang("cuMemcpyDtoDAsync", HUNG_COPY)

    CopyWatch.start = start_and_hang


def register():
    """Entry point of the plugin; vLLM calls it in each of its processes."""
    MEMORY_OF_DEVICE["cpu"] = FakeGpuMemory
