# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Makes the copies of a rank as slow as a link between hosts or GPUs would, without using a core.

On host memory copies are as fast as kernels read, so nothing is gained by fewer of them there.
"""

import time
from typing import Any

from vllm_dwdp._core import CopyList


class LinkedCopier:
    """A copier whose copies end when the real one's have, and a link could have carried them."""

    def __init__(self, copier: Any, *, bytes_per_s: float, sizes: dict[int, int]) -> None:
        self._copier = copier
        self._bytes_per_s = bytes_per_s
        self._sizes = sizes
        self._is_free_at = 0.0
        self._ends: dict[int, float] = {}

    def submit(self, copies: CopyList, stream: int) -> int:
        ticket = self._copier.submit(copies, stream)
        begin = max(time.perf_counter(), self._is_free_at)
        self._is_free_at = begin + self._sizes[id(copies)] / self._bytes_per_s
        self._ends[ticket] = self._is_free_at
        return int(ticket)

    def wait(self, ticket: int, stream: int) -> None:
        self._copier.wait(ticket, stream)
        time.sleep(max(0.0, self._ends.pop(ticket, 0.0) - time.perf_counter()))

    def cancel(self, ticket: int) -> None:
        self._ends.pop(ticket, None)
        self._copier.cancel(ticket)

    def drain(self) -> None:
        self._copier.drain()


class SlowLink:
    """What --worker-extension-cls adds to a rank's worker."""

    def slow_down(self, gb_per_s: float) -> int:
        """Let all later copies pass a link; returns the bytes that a step copies."""
        scheduler = self._sharing._fetching._scheduler  # type: ignore[attr-defined]
        layers = scheduler._layers
        sizes = {id(layer.everything): sum(layer.bytes_by_peer) for layer in layers}
        scheduler._copier = LinkedCopier(scheduler._copier, bytes_per_s=gb_per_s * 1e9, sizes=sizes)
        return sum(sizes.values())
