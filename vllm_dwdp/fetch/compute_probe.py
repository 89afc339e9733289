# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How long a layer computes for a token, taken from steps that serve nobody."""

import statistics
from collections.abc import Callable

from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.scheduler import ChosenIds


class ComputeProbe:
    """Looks at the clock around every layer; stands in for the scheduler.

    Layers run on the views of one mode and nothing is copied: on slots, whatever they hold.
    """

    def __init__(self, clock: Callable[[], float], mode: FetchMode) -> None:
        """clock: seconds, once all work given to the device before has ended."""
        self._clock = clock
        self._mode = mode
        self._kernels: dict[int, list[float]] = {}
        self._last: tuple[int, float] | None = None
        self._windows: dict[int, list[float]] = {}
        self._num_tokens = 0

    def wait(self, layer: int, num_tokens: int, chosen: ChosenIds | None = None) -> FetchMode:
        now = self._clock()
        if self._last is not None and self._last[0] + 1 == layer:
            self._windows.setdefault(num_tokens, []).append(now - self._last[1])
        self._last = (layer, now)
        self._num_tokens = num_tokens
        return self._mode

    def release(self, layer: int, mode: FetchMode) -> None:
        """A layer's kernel alone counts where no other layer follows."""
        if self._last is not None:
            seconds = self._clock() - self._last[1]
            self._kernels.setdefault(self._num_tokens, []).append(seconds)

    @property
    def seconds_per_token(self) -> float:
        """Of one layer with what lies between it and the next, in the largest step seen."""
        seen = self._windows or self._kernels
        num_tokens = max(seen)
        return statistics.median(seen[num_tokens]) / max(1, num_tokens)
