# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures how long layers wait for their experts, on the CPU or the GPU, whichever waits.

The thread that runs the model calls `begin` before and `end` after the call that may wait.
"""

import time
from collections import deque
from typing import Protocol

import torch

SAMPLED_STEPS = 8
"""On a GPU one step of this many is timed, because events cost the host time at every layer."""


class Waits(Protocol):
    """Adds the time of each wait to a list of seconds, by layer."""

    def begin(self, step: int) -> None: ...
    def end(self, layer: int) -> None: ...
    def last(self) -> tuple[float, float] | None:
        """When the last wait began and ended, by time.perf_counter; None if a GPU waited."""
        ...


class HostWaits:
    """Measures waits on a CPU, where the calling thread itself waits."""

    def __init__(self, seconds: list[float]) -> None:
        self._seconds = seconds
        self._start = self._end = 0.0

    def begin(self, step: int) -> None:
        self._start = time.perf_counter()

    def end(self, layer: int) -> None:
        self._end = time.perf_counter()
        self._seconds[layer] += self._end - self._start

    def last(self) -> tuple[float, float] | None:
        return self._start, self._end


class GpuWaits:
    """Measures waits on a GPU, where the current stream waits, between two events.

    The waits of one timed step count SAMPLED_STEPS times. The host doesn't wait for the events: a
    later timed step finds that they have passed, and adds their times. The waits of a replayed
    graph are not measured, because a replay runs no Python.
    """

    def __init__(self, seconds: list[float]) -> None:
        self._seconds = seconds
        self._idle: list[torch.cuda.Event] = []
        self._start: torch.cuda.Event | None = None
        self._under_way: deque[tuple[int, torch.cuda.Event, torch.cuda.Event]] = deque()

    def begin(self, step: int) -> None:
        self._start = None
        if step % SAMPLED_STEPS or torch.cuda.is_current_stream_capturing():
            return
        self._collect()
        self._start = self._record()

    def end(self, layer: int) -> None:
        if self._start is not None:
            self._under_way.append((layer, self._start, self._record()))

    def last(self) -> tuple[float, float] | None:
        return None

    def _record(self) -> torch.cuda.Event:
        event = self._idle.pop() if self._idle else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _collect(self) -> None:
        while self._under_way and self._under_way[0][2].query():
            layer, start, end = self._under_way.popleft()
            self._seconds[layer] += SAMPLED_STEPS * start.elapsed_time(end) / 1e3
            self._idle += (start, end)
