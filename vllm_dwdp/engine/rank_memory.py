# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The memory that a rank's experts live in, host or CUDA: its driver, copier, streams and clock.

All that differs between the two above the driver seam is here.
"""

import ctypes
import functools
import os
import socket
import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import psutil
import torch

from vllm_dwdp._core import (
    ChosenExperts,
    Copier,
    CudaCopier,
    CudaDriver,
    HostCopier,
    HostDriver,
    MemoryDriver,
    View,
)
from vllm_dwdp.config import DwdpConfig
from vllm_dwdp.engine.cpu_host import NO_NUMA_NODE, own_numa_node
from vllm_dwdp.fetch.bandwidth import GpuProbe, HostProbe, LinkProbe
from vllm_dwdp.fetch.waits import GpuWaits, HostWaits, Waits
from vllm_dwdp.layout.copies import gpu_slice_bytes
from vllm_dwdp.memory.slots import MakeChosen

HOST_SLICE_BYTES = 1 << 20


class RankMemory(ABC):
    """driver: of blocks and views; slot_driver: of slots; kind: as the drivers name it."""

    kind: ClassVar[str]
    driver: MemoryDriver
    slot_driver: MemoryDriver
    numa_node: int = NO_NUMA_NODE
    is_taken_at_once = False
    """Whether what PyTorch allocates is taken at once, or when it is first written to."""
    gpu_name: str | None = None
    """The unique name of this rank's GPU; None for ranks on CPUs."""

    @property
    def place(self) -> str:
        """The memory in which experts lie, for ranks to tell whether it is the same one."""
        return self.gpu_name or f"host {socket.gethostname()}"

    @abstractmethod
    def free_bytes(self) -> int:
        """What this memory can still give."""

    @abstractmethod
    def __init__(self, rank: int) -> None:
        """Of the rank of this number in its group."""

    @property
    def warnings(self) -> list[str]:
        """What went less well than asked with blocks and views, once each."""
        return self.driver.warnings

    def bytes_of(self, view: View) -> torch.Tensor:
        """uint8 [num_bytes] of a finished view, which it keeps mapped."""
        return torch.from_dlpack(view.bytes_tensor())

    @abstractmethod
    def make_copier(self, config: DwdpConfig) -> Copier: ...

    def slice_bytes(self, peer_bytes: int) -> int:
        """How much to copy from one peer at a time, of `peer_bytes` in a layer."""
        return HOST_SLICE_BYTES

    @abstractmethod
    def make_chosen(self, copier: Copier, num_peers: int) -> MakeChosen[Any]:
        """For all layers of this rank."""

    def gathered(self) -> list[int] | None:
        """What was copied of chosen experts where only the GPU knows: see fetch.gather.make_totals.

        Waits for the GPU.
        """
        return None

    def link_probe(self, copier: Copier) -> LinkProbe:
        """What measures how fast blocks are copied and read."""
        return HostProbe(self.slot_driver, copier)

    def make_waits(self, seconds: list[float]) -> Waits:
        """What times how long layers wait, by layer."""
        return HostWaits(seconds)

    @abstractmethod
    def current_stream(self) -> int:
        """The handle of the stream that kernels are given to; 0 where the CPU runs them."""

    @abstractmethod
    def seconds(self) -> float:
        """A clock that has waited for all work before it."""

    @abstractmethod
    def give_back(self) -> None:
        """Return freed memory to the system."""


class HostMemory(RankMemory):
    """Memory files of this host."""

    kind = "host"

    def __init__(self, rank: int) -> None:
        self.numa_node = own_numa_node()
        self.driver = HostDriver(name=f"dwdp-rank{rank}", numa_node=self.numa_node)
        self.slot_driver = HostDriver(name=f"dwdp-slots{rank}", numa_node=self.numa_node)

    def make_copier(self, config: DwdpConfig) -> Copier:
        return HostCopier(num_threads=config.copy_threads, cores=_cores_of_the_engine())

    def make_chosen(self, copier: Copier, num_peers: int) -> MakeChosen[Any]:
        return functools.partial(ChosenExperts, copier)

    def current_stream(self) -> int:
        return 0

    def free_bytes(self) -> int:
        return int(psutil.virtual_memory().available)

    def seconds(self) -> float:
        return time.perf_counter()

    def give_back(self) -> None:
        """glibc keeps freed memory, and tcmalloc where vLLM preloads that."""
        process = ctypes.CDLL(None)
        if hasattr(process, "MallocExtension_ReleaseFreeMemory"):
            process.MallocExtension_ReleaseFreeMemory()
        elif hasattr(process, "malloc_trim"):
            process.malloc_trim(0)


class GpuMemory(RankMemory):
    """Memory of the GPU that this rank runs on."""

    kind = "cuda"
    is_taken_at_once = True

    def __init__(self, rank: int) -> None:
        gpu = torch.cuda.current_device()
        self.gpu_name = f"GPU {torch.cuda.get_device_properties(gpu).uuid}"
        self.driver = self.slot_driver = self._driver = CudaDriver(gpu)
        self._totals: torch.Tensor | None = None

    def make_copier(self, config: DwdpConfig) -> Copier:
        return CudaCopier(self._driver, use_batches=config.batched_copies)

    def slice_bytes(self, peer_bytes: int) -> int:
        return gpu_slice_bytes(peer_bytes)

    def make_chosen(self, copier: Copier, num_peers: int) -> MakeChosen[Any]:
        from vllm_dwdp.fetch import gather  # Triton comes with vLLM for GPUs

        totals = self._totals = gather.make_totals(num_peers, "cuda")
        return lambda experts, _: gather.GatheredExperts(experts, totals)

    def link_probe(self, copier: Copier) -> LinkProbe:
        cache_bytes = torch.cuda.get_device_properties().L2_cache_size
        return GpuProbe(self.slot_driver, copier, self.seconds, cache_bytes)

    def make_waits(self, seconds: list[float]) -> Waits:
        return GpuWaits(seconds)

    def free_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info()
        return int(free)

    def gathered(self) -> list[int] | None:
        return None if self._totals is None else self._totals.tolist()

    def current_stream(self) -> int:
        return int(torch.cuda.current_stream().cuda_stream)

    def seconds(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    def give_back(self) -> None:
        """PyTorch keeps freed memory of the GPU, and freed pinned memory of the host."""
        torch.cuda.empty_cache()
        _empty_host_cache()


def _empty_host_cache() -> None:
    """PyTorch 2.12 and later have a public name for it."""
    if hasattr(torch.accelerator, "empty_host_cache"):
        torch.accelerator.empty_host_cache()
    elif hasattr(torch._C, "_host_emptyCache"):
        torch._C._host_emptyCache()


def _cores_of_the_engine() -> list[int]:
    """A worker's thread is bound to a core of its kernels; the engine that spawned it is not."""
    return sorted(os.sched_getaffinity(os.getppid()) | os.sched_getaffinity(0))


MEMORY_OF_DEVICE: dict[str, type[RankMemory]] = {"cpu": HostMemory, "cuda": GpuMemory}
"""By the type of the device that a worker runs on. Tests hand in memory of their own here."""


def memory_kind(device_type: str) -> str:
    """MemoryDriver.kind of a worker's memory, before there is a worker."""
    return MEMORY_OF_DEVICE[device_type].kind


def rank_memory(device_type: str, rank: int) -> RankMemory:
    """Of a worker that runs on a device of this type."""
    return MEMORY_OF_DEVICE[device_type](rank)
