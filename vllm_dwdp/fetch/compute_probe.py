# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How long a layer computes for a token, taken from vLLM's own profiling run."""

import math
import statistics
from collections.abc import Callable

from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.scheduler import ChosenIds


class ComputeProbe:
    """Runs every layer in direct mode and looks at the clock; stands in for the scheduler."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds, once all work given to the device before has ended, or NaN."""
        self._clock = clock
        self._last: tuple[int, float] | None = None
        self._windows: dict[int, list[float]] = {}
        self._num_tokens = 0

    def wait(self, layer: int, num_tokens: int, chosen: ChosenIds | None = None) -> FetchMode:
        now = self._clock()
        if self._last is not None and self._last[0] + 1 == layer:
            self._note(num_tokens, now - self._last[1])
        self._last = (layer, now)
        self._num_tokens = num_tokens
        return FetchMode.DIRECT

    def release(self, layer: int, mode: FetchMode) -> None:
        """Layer 0 alone counts by its kernel: there may be no other."""
        if layer == 0 and self._last is not None:
            self._note(self._num_tokens, self._clock() - self._last[1])

    @property
    def seconds_per_token(self) -> float | None:
        """Of one layer with what lies between it and the next, in the largest step seen."""
        if not self._windows:
            return None
        num_tokens = max(self._windows)
        return statistics.median(self._windows[num_tokens]) / max(1, num_tokens)

    def _note(self, num_tokens: int, window: float) -> None:
        if not math.isnan(window):
            self._windows.setdefault(num_tokens, []).append(window)
