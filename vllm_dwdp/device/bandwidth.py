# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures two bandwidths: of copies by the rank's copier, and of reads by a kernel.

On a GPU different hardware does the two, so that neither bandwidth can be inferred from the other.
"""

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from vllm_dwdp._core import Copier, CopyList, MemoryDriver

FAST_LINK = 0.7
"""Peers' memory is read in place if its bandwidth is at least this share of own memory's."""

HOST_ROOM_BYTES = 16 << 20
MIN_GPU_ROOM_BYTES = 256 << 20
CACHES = 4
"""On a GPU a measurement moves this many times the second-level cache, to measure memory."""

NUM_READS = 8
"""How often a measurement reads the same bytes, if there is time, so that launches hardly count."""


class Bandwidths(NamedTuple):
    """Bytes per second.

    copies: by the copier, out of peers' memory. peers: by a kernel that reads peers' memory. own:
    by a kernel that reads own memory.
    """

    copies: float
    peers: float
    own: float

    @property
    def reads_peers_as_own(self) -> bool:
        """Whether peers' memory is so fast that copies save no time."""
        return self.peers >= FAST_LINK * self.own

    @classmethod
    def slowest(cls, found: Iterable["Bandwidths"]) -> "Bandwidths":
        """The slowest figure of each kind."""
        return cls(*map(min, zip(*found, strict=True)))


class LinkProbe(ABC):
    """Measures how fast bytes are copied and read; repeats a measurement until a time.

    sources: uint8 tensors of whole pages. until: the end, by time.monotonic(). room_bytes: how many
    bytes of the sources are moved at a time.
    """

    room_bytes: int

    @abstractmethod
    def copies(self, sources: Sequence[torch.Tensor], until: float) -> float:
        """Bytes per second that the copier copies."""

    @abstractmethod
    def reads(self, sources: Sequence[torch.Tensor], until: float) -> float:
        """Bytes per second that a kernel reads."""


class HostProbe(LinkProbe):
    """Measures memory that the CPU reads; a copy is a read there.

    The fastest measurement counts, because other work of the machine can only slow one down.
    """

    room_bytes = HOST_ROOM_BYTES

    def __init__(self, driver: MemoryDriver, copier: Copier) -> None:
        self._driver = driver
        self._copier = copier

    def copies(self, sources: Sequence[torch.Tensor], until: float) -> float:
        num_bytes, times = copy_seconds(self._driver, self._copier, self._parts(sources), until)
        return num_bytes / min(times)

    def reads(self, sources: Sequence[torch.Tensor], until: float) -> float:
        return self.copies(sources, until)

    def _parts(self, sources: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return first_bytes(sources, self.room_bytes)


class GpuProbe(LinkProbe):
    """Measures memory of GPUs.

    The median counts: other ranks read at the same time, and their effect belongs to the figure.
    clock: waits for all work given to the GPU before, and returns the time in seconds.
    """

    def __init__(
        self, driver: MemoryDriver, copier: Copier, clock: Callable[[], float], cache_bytes: int
    ) -> None:
        pages = -(-CACHES * cache_bytes // driver.granularity)
        self.room_bytes = max(MIN_GPU_ROOM_BYTES, pages * driver.granularity)
        self._driver = driver
        self._copier = copier
        self._clock = clock

    def copies(self, sources: Sequence[torch.Tensor], until: float) -> float:
        parts = first_bytes(sources, self.room_bytes)
        num_bytes, times = copy_seconds(self._driver, self._copier, parts, until)
        return num_bytes / statistics.median(times)

    def reads(self, sources: Sequence[torch.Tensor], until: float) -> float:
        parts = [part.view(torch.int64) for part in first_bytes(sources, self.room_bytes)]
        self._read(parts, 1)  # fills page tables
        seconds = self._read(parts, 1)
        left = until - time.monotonic()
        num_reads = max(1, min(NUM_READS, int(left / (2 * seconds))))
        times = _repeat(lambda: self._read(parts, num_reads), until)
        num_bytes: int = num_reads * sum(part.nbytes for part in parts)
        return num_bytes / statistics.median(times)

    def _read(self, parts: Sequence[torch.Tensor], num_reads: int) -> float:
        start = self._clock()
        for _ in range(num_reads):
            for part in parts:
                part.sum()
        return self._clock() - start


def copy_seconds(
    driver: MemoryDriver, copier: Copier, parts: Sequence[torch.Tensor], until: float
) -> tuple[int, list[float]]:
    """Copy `parts` until a time; return the bytes of one measurement and the seconds of each.

    A measurement copies a small `parts` several times in a row. One copy of it would measure the
    copier's threads more than memory.
    """
    num_bytes = sum(part.nbytes for part in parts)
    scratch = driver.create_scratch_page(max(num_bytes, HOST_ROOM_BYTES))
    num_rounds = scratch.num_bytes // num_bytes
    copies, at = [], scratch.address
    for part in parts:
        copies.append((at, part.data_ptr(), part.nbytes))
        at += part.nbytes
    copy_list = CopyList([copies] * num_rounds, [scratch])
    _copy(copier, copy_list)  # fills page tables
    return num_rounds * num_bytes, _repeat(lambda: _copy(copier, copy_list), until)


def first_bytes(sources: Sequence[torch.Tensor], num_bytes: int) -> list[torch.Tensor]:
    """The first `num_bytes` of the sources together; both are whole pages."""
    parts = []
    for source in sources:
        if part := min(num_bytes, source.nbytes):
            parts.append(source[:part])
            num_bytes -= part
    return parts


def _repeat(once: Callable[[], float], until: float) -> list[float]:
    """The results of calls of `once`, at least one call, until a time."""
    times = [once()]
    while time.monotonic() < until:
        times.append(once())
    return times


def _copy(copier: Copier, copies: CopyList) -> float:
    start = time.perf_counter()
    copier.submit(copies)
    copier.drain()
    return time.perf_counter() - start
