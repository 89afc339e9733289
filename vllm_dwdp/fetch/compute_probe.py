# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures how long one layer computes for a token, on made-up steps before serving starts."""

from collections.abc import Callable

from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.base import ChosenIds


class ComputeProbe:
    """A fetcher that times one layer; it is in the scheduler's place while it does.

    The timed layer runs on the views of `mode`, all other layers read in place; nothing is copied.
    """

    def __init__(self, clock: Callable[[], float], layer_idx: int, mode: FetchMode) -> None:
        """clock: waits for all work given to the device before, and returns the time in seconds."""
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
        """Seconds per token, from the start of the layer to the next MoE layer.

        If no MoE layer follows, only the layer's kernel is timed. Of the steps seen, those of the
        largest size count, and of these the fastest: the first one compiles, and other work of the
        machine can only slow a step down.
        """
        seen = self._windows or self._kernels
        num_tokens = max(seen)
        return min(seen[num_tokens]) / max(1, num_tokens)

    def _note(self, times: dict[int, list[float]]) -> None:
        if self._start is not None:
            times.setdefault(self._num_tokens, []).append(self._clock() - self._start)
