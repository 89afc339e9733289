# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Bandwidth of copies out of peers' memory and out of one's own, measured by the copier."""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from vllm_dwdp._core import Copier, CopyList, MemoryDriver

SCRATCH_BYTES = 16 << 20
GPU_SCRATCH_BYTES = 128 << 20
NUM_REPEATS = 5


class MemoryRange(NamedTuple):
    """Addresses to read from."""

    address: int
    num_bytes: int


def copy_bytes_per_s(
    driver: MemoryDriver, copier: Copier, sources: Sequence[MemoryRange]
) -> float | None:
    """Median bandwidth of copying some of the sources; None where there are none."""
    page = driver.granularity
    parts = []
    left = room = SCRATCH_BYTES if driver.gpu is None else GPU_SCRATCH_BYTES
    for source in sources:
        num_bytes = min(left, source.num_bytes // page * page)
        if num_bytes:
            parts.append((source.address, num_bytes))
            left -= num_bytes
    if not parts:
        return None
    scratch = driver.create_slot_page(room)
    copies, at = [], scratch.address
    for address, num_bytes in parts:
        copies.append((at, address, num_bytes))
        at += num_bytes
    copy_list = CopyList([copies])
    seconds = [_seconds(copier, copy_list) for _ in range(NUM_REPEATS + 1)][1:]
    return (room - left) / statistics.median(seconds)


def _seconds(copier: Copier, copies: CopyList) -> float:
    start = time.perf_counter()
    ticket = copier.submit(copies)
    copier.wait(ticket)
    while not copier.is_done(ticket):  # a GPU has only been told to wait
        pass
    return time.perf_counter() - start
