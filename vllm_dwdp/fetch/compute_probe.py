# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How long one layer computes for a token, taken from steps that serve nobody."""

from collections.abc import Callable

from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.base import ChosenIds


class ComputeProbe:
    """Looks at the clock around one layer; stands in for the scheduler.

    The layer runs on the views of one mode, all others read in place; nothing is copied.
    """

    def __init__(self, clock: Callable[[], float], layer_idx: int, mode: FetchMode) -> None:
        """clock: seconds, once all work given to the device before has ended."""
        self._clock = clock
        self._layer_idx = layer_idx
        self._mode = mode
        self._num_tokens = 0
        self._start: float | None = None
        self._kernels: dict[int, list[float]] = {}
        self._windows: dict[int, list[float]] = {}

    def wait(self, layer: int, num_tokens: int, chosen: ChosenIds | None = None) -> FetchMode:
        """The next layer's call ends the window in which a copy can hide."""
        if layer == self._layer_idx + 1:
            self._note(self._windows)
        self._start = None
        if layer != self._layer_idx:
            return FetchMode.DIRECT
        self._num_tokens = num_tokens
        self._start = self._clock()
        return self._mode

    def release(self, layer: int, mode: FetchMode) -> None:
        if layer == self._layer_idx:
            self._note(self._kernels)

    @property
    def seconds_per_token(self) -> float:
        """Seconds per token of the layer and of what follows it up to the next MoE layer.

        They are those of the largest step seen.

        The kernel alone counts where no other layer follows. The fastest of several steps counts:
        the first one compiles, and other work of the machine only adds to a time.
        """
        seen = self._windows or self._kernels
        num_tokens = max(seen)
        return min(seen[num_tokens]) / max(1, num_tokens)

    def _note(self, times: dict[int, list[float]]) -> None:
        if self._start is not None:
            times.setdefault(self._num_tokens, []).append(self._clock() - self._start)
