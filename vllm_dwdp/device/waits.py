# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How long layers wait for their experts, measured where the waiting happens: on CPU or GPU.

`begin` and `end` stand around what makes a layer wait, in the thread that runs the model.
"""

import time
from collections import deque
from typing import Protocol

import torch

SAMPLED_STEPS = 8
"""Of so many steps one is timed on a GPU: events cost the host time at every layer."""


class Waits(Protocol):
    """Adds to a list of seconds by layer."""

    def begin(self, step: int) -> None: ...
    def end(self, layer: int) -> None: ...


class HostWaits:
    """The thread itself waits."""

    def __init__(self, seconds: list[float]) -> None:
        self._seconds = seconds
        self._start = 0.0

    def begin(self, step: int) -> None:
        self._start = time.perf_counter()

    def end(self, layer: int) -> None:
        self._seconds[layer] += time.perf_counter() - self._start


class GpuWaits:
    """The current stream waits, between two events; what one step waits counts for SAMPLED_STEPS.

    Nothing waits for the events: a step is counted when one after it finds that they have passed.
    A replayed graph runs no Python, so that its waits are not seen.
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

    def _record(self) -> torch.cuda.Event:
        event = self._idle.pop() if self._idle else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _collect(self) -> None:
        while self._under_way and self._under_way[0][2].query():
            layer, start, end = self._under_way.popleft()
            self._seconds[layer] += SAMPLED_STEPS * start.elapsed_time(end) / 1e3
            self._idle += (start, end)
