# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A span: something that took time in a rank, a bar of the timeline."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Interval = tuple[float, float]


class Kind(StrEnum):
    """What took the time. The value is the category of the event in a trace file."""

    STEP = "step"
    """From the call of the first MoE layer to the end of the last one."""
    KERNEL = "kernel"
    """The kernel that runs the experts of a layer."""
    BETWEEN = "between"
    """From the end of one MoE layer to the call of the next one: attention and the rest."""
    WAIT = "wait"
    """A layer waited for its experts (exposed)."""
    COPY = "copy"
    """Copies for one layer from one place."""


@dataclass(frozen=True)
class Span:
    """Times are in microseconds from the beginning of the trace. rank: its number in the job."""

    rank: int
    kind: Kind
    name: str
    begin_us: float
    end_us: float
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def interval(self) -> Interval:
        return self.begin_us, self.end_us

    @property
    def us(self) -> float:
        return self.end_us - self.begin_us


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same points in time as disjoint intervals, in order."""
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def common(a: list[Interval], b: list[Interval]) -> list[Interval]:
    """The points in time that lie in both; a, b: disjoint and in order, as from `union`."""
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        begin, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if begin < end:
            found.append((begin, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return found


def total(intervals: Iterable[Interval]) -> float:
    """How long the intervals are together."""
    return sum(end - begin for begin, end in intervals)
