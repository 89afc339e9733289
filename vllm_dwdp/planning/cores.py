# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which cores lie at which memory node, and on which of them this process runs."""

import contextlib
import glob
import os
from collections.abc import Iterator
from pathlib import Path


def memory_nodes() -> list[set[int]]:
    """The cores that this process may use, by memory node; nodes without any are left out."""
    allowed = os.sched_getaffinity(0)
    listed = [Path(p).read_text() for p in sorted(glob.glob("/sys/devices/system/node/*/cpulist"))]
    found = [allowed & set(listed_cores(text)) for text in listed]
    return [cores for cores in found if cores] or [allowed]


def listed_cores(text: str) -> Iterator[int]:
    """The numbers in a list like "0-3,8"."""
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


@contextlib.contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """All threads of this process run on these cores; PyTorch's own threads, too."""
    before = os.sched_getaffinity(0)
    _move(set(cores))
    try:
        yield
    finally:
        _move(before)


def _move(cores: set[int]) -> None:
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # a thread that ended meanwhile
            os.sched_setaffinity(int(task), cores)
