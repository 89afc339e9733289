# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ends a rank whose copies don't end; without this watch a hung driver looks like a slow answer.

* The watch looks at the copier from a thread of its own, and calls nothing that could block.
* The watch counts looks, not seconds, so that time in which the process was stopped doesn't count.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from vllm_dwdp._core import CopyProgress

logger = logging.getLogger("vllm.dwdp")
INTERVAL_S = 5.0
NUM_LOOKS = 12
"""A copy hangs if this many looks in a row, a minute, find it where the look before found it."""


class CopiedSlice(NamedTuple):
    """What one copy brings, and from which rank of the group."""

    peer: int
    num_bytes: int


class Watched(Protocol):
    """What the watch calls of `vllm_dwdp._core.Copier`."""

    def first_under_way(self) -> CopyProgress | None: ...


class CopyWatch:
    """Looks at the copier at intervals, and ends the rank if a copy hangs.

    layers: the copies of each layer, in order. rank: this rank's number in its group. job_ranks: by
    rank of the group, its number in the job, which users know. end_rank: called once, if a copy
    hangs; ends the process.
    """

    def __init__(
        self,
        copier: Watched,
        layers: Sequence[Sequence[CopiedSlice]],
        *,
        rank: int,
        job_ranks: Sequence[int],
        end_rank: Callable[[], None],
    ) -> None:
        self._copier = copier
        self._layers = layers
        self._rank = rank
        self._job_ranks = job_ranks
        self._end_rank = end_rank
        self._last: tuple[int, int] | None = None
        self._num_same = 0

    def start(self, interval_s: float = INTERVAL_S) -> None:
        """Watch from a thread of its own every `interval_s` seconds, until a copy hangs."""
        threading.Thread(
            target=self._run, args=(interval_s,), name="dwdp-copy-watch", daemon=True
        ).start()

    def look(self) -> CopyProgress | None:
        """The copies that have got no further for NUM_LOOKS looks, if there are any."""
        progress = self._copier.first_under_way()
        found = None if progress is None else (progress.ticket, progress.num_ended)
        self._num_same = self._num_same + 1 if found is not None and found == self._last else 0
        self._last = found
        return progress if self._num_same >= NUM_LOOKS else None

    def describe(self, progress: CopyProgress, seconds: float) -> str:
        """Why the rank ends: `progress`, as `look` returned it, stood still for `seconds`."""
        rank = self._job_ranks[self._rank]
        return (
            f"dwdp rank {rank} ends: {self._name(progress)} for {seconds:.0f} s. Its GPU, the "
            "peer's, the link between them or the driver hangs; see 'dmesg' for errors of the "
            "driver (Xid), and start the ranks again."
        )

    def _name(self, progress: CopyProgress) -> str:
        if not 0 <= progress.layer < len(self._layers):
            return f"copy {progress.num_ended + 1} of chosen experts has not ended"
        slices = self._layers[progress.layer]
        if not progress.has_begun:
            num_bytes = sum(one.num_bytes for one in slices)
            return (
                f"the copies for MoE layer {progress.layer} ({num_bytes} bytes) have not begun, "
                "because what the GPU was given before them has not ended"
            )
        peer, num_bytes = slices[min(progress.num_ended, len(slices) - 1)]
        return (
            f"copy {progress.num_ended + 1} of {len(slices)} for MoE layer {progress.layer}, "
            f"{num_bytes} bytes from {self._place(peer)}, has not ended"
        )

    def _place(self, peer: int) -> str:
        if peer == self._rank:
            return "the memory of its host"
        return f"the memory of rank {self._job_ranks[peer]}"

    def _run(self, interval_s: float) -> None:
        never = threading.Event()
        while not never.wait(interval_s):
            if (stuck := self.look()) is not None:
                logger.error("%s", self.describe(stuck, interval_s * NUM_LOOKS))
                self._end_rank()
                return
