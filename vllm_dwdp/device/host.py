# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Experts in memory files of this host, for ranks on CPU cores."""

import ctypes
import os
import time
from typing import Any

import psutil

from vllm_dwdp._core import ChosenExperts, Copier, HostCopier, HostDriver
from vllm_dwdp.config import DwdpConfig
from vllm_dwdp.device.base import RankMemory
from vllm_dwdp.device.numa import own_numa_node, read_numa_nodes
from vllm_dwdp.memory.slots import MakeChosen


class HostMemory(RankMemory):
    """Memory files of this host."""

    kind = "host"

    def __init__(self, rank: int) -> None:
        self.numa_node = own_numa_node()
        self.is_shared_by_all = len(read_numa_nodes()) <= 1
        self.driver = HostDriver(name=f"dwdp-rank{rank}", numa_node=self.numa_node)
        self.slot_driver = HostDriver(name=f"dwdp-slots{rank}", numa_node=self.numa_node)

    def make_copier(self, config: DwdpConfig) -> Copier:
        return HostCopier(num_threads=config.copy_threads, cores=_cores_of_the_engine())

    def make_chosen(self, copier: Copier, num_ranks: int) -> MakeChosen[Any]:
        return lambda experts: ChosenExperts(copier, experts, num_ranks)

    def current_stream(self) -> int:
        return 0

    def free_bytes(self) -> int:
        return int(psutil.virtual_memory().available)

    def seconds(self) -> float:
        return time.perf_counter()

    def give_back(self) -> None:
        """Return freed memory that glibc keeps, or tcmalloc if vLLM preloads that."""
        process = ctypes.CDLL(None)
        if hasattr(process, "MallocExtension_ReleaseFreeMemory"):
            process.MallocExtension_ReleaseFreeMemory()
        elif hasattr(process, "malloc_trim"):
            process.malloc_trim(0)


def _cores_of_the_engine() -> list[int]:
    """The cores on which threads that copy may run: all cores of the engine.

    This thread of the worker is bound to a core of its kernels. The engine, the worker's parent
    process, is not.
    """
    return sorted(os.sched_getaffinity(os.getppid()) | os.sched_getaffinity(0))
