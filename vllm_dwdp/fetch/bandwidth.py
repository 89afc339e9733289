# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Bandwidth of copies, by the copier that prefetches, and of reads by a kernel.

The best of NUM_REPEATS: whatever else the machine does only adds to a time.

A GPU does the two by different engines: between two addresses of one GPU its copy engine takes
twenty times as long as a kernel, so that the one says nothing about the other.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from vllm_dwdp._core import Copier, CopyList, MemoryDriver

SCRATCH_BYTES = 16 << 20
GPU_SCRATCH_BYTES = 128 << 20
NUM_REPEATS = 5
FAST_LINK = 0.7
"""Peers' memory this fast, beside own memory, is read where it lies."""

NUM_READS = 8
"""Of the same bytes in a row: launching a kernel must not count."""


class Bandwidths(NamedTuple):
    """Bytes per second: copies out of peers' memory; what kernels read of it, and of own memory."""

    copies: float
    peers: float
    own: float

    @property
    def reads_peers_as_own(self) -> bool:
        """Whether nothing is to be won by copying."""
        return self.peers >= FAST_LINK * self.own


def copy_bytes_per_s(
    driver: MemoryDriver, copier: Copier, sources: Sequence[torch.Tensor]
) -> float | None:
    """Bandwidth of copying some of the sources, tensors of bytes; None where none are."""
    room = SCRATCH_BYTES if driver.gpu is None else GPU_SCRATCH_BYTES
    parts = _first_bytes(sources, room)
    if not parts:
        return None
    scratch = driver.create_slot_page(room)
    copies, at = [], scratch.address
    for part in parts:
        copies.append((at, part.data_ptr(), part.nbytes))
        at += part.nbytes
    num_bytes = at - scratch.address
    num_rounds = room // num_bytes  # few bytes alone would time the copier's threads
    copy_list = CopyList([copies] * num_rounds, [scratch])
    seconds = [_copy_seconds(copier, copy_list) for _ in range(NUM_REPEATS + 1)][1:]
    return num_rounds * num_bytes / min(seconds)


def read_bytes_per_s(sources: Sequence[torch.Tensor], seconds: Callable[[], float]) -> float | None:
    """Bandwidth of a kernel that reads some of the sources; None where there are none.

    seconds: a clock that has waited for all work before it.
    """
    parts = [part.view(torch.int64) for part in _first_bytes(sources, GPU_SCRATCH_BYTES)]
    if not parts:
        return None
    times = [_read_seconds(parts, seconds) for _ in range(NUM_REPEATS + 1)][1:]
    num_bytes: int = NUM_READS * sum(part.nbytes for part in parts)
    return num_bytes / min(times)


def _first_bytes(sources: Sequence[torch.Tensor], num_bytes: int) -> list[torch.Tensor]:
    """As much of the sources as there is room for; those are whole pages."""
    parts = []
    for source in sources:
        if part := min(num_bytes, source.nbytes):
            parts.append(source[:part])
            num_bytes -= part
    return parts


def _copy_seconds(copier: Copier, copies: CopyList) -> float:
    start = time.perf_counter()
    copier.submit(copies)
    copier.drain()
    return time.perf_counter() - start


def _read_seconds(parts: Sequence[torch.Tensor], seconds: Callable[[], float]) -> float:
    start = seconds()
    for _ in range(NUM_READS):
        for part in parts:
            part.sum()
    return seconds() - start
