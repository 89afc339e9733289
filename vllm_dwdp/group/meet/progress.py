# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How far the ranks of a group have come in their start-up, and which of them hangs.

* A rank counts a step at each phase, at each tensor that it loads, and at each layer that it adopts
  or binds. While it waits for a peer, it counts signs of life instead.
* Each rank's failure watch posts both counts. Its peers time them by their own clocks.
* A rank hangs if neither of its counts changes for `timeout_s`. The group hangs if no rank takes a
  step for `timeout_s`, as when two ranks wait for each other.
"""

import time
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

ADVICE = "look at its log, or raise dwdp.timeout_s."


class Phase(StrEnum):
    """The phases of a rank's start-up, in order. Each reads well after the word "while"."""

    JOINING = "joining"
    TRYING_PEERS = "trying its peers' memory"
    LOADING = "loading"
    ADOPTING = "adopting its experts"
    MEETING = "meeting its group"
    BINDING = "binding its experts"
    FINISHING = "finishing start-up"


class Place(NamedTuple):
    """Where a rank is: how many steps and signs of life it has counted, and what it is doing."""

    num_steps: int
    num_signs: int
    doing: str

    def to_bytes(self) -> bytes:
        return f"{self.num_steps} {self.num_signs} {self.doing}".encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Place":
        num_steps, num_signs, doing = data.decode().split(" ", 2)
        return cls(int(num_steps), int(num_signs), doing)


class Progress:
    """This rank's own place. One thread changes it, other threads read it."""

    def __init__(self) -> None:
        self._phase = Phase.JOINING
        self._place = Place(0, 0, self._phase)

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def place(self) -> Place:
        return self._place

    def enter(self, phase: Phase) -> None:
        """The rank begins another phase of its start-up."""
        self._phase = phase
        self._place = Place(self._place.num_steps + 1, self._place.num_signs, phase)

    def step(self, detail: str) -> None:
        """The rank got further within its phase; `detail` says where it is now."""
        doing = f"{self._phase}: {detail}"
        self._place = Place(self._place.num_steps + 1, self._place.num_signs, doing)

    def wait(self, detail: str) -> None:
        """The rank is alive and waits for a peer; called again and again while it waits."""
        doing = f"{self._phase}: waiting for {detail}"
        self._place = Place(self._place.num_steps, self._place.num_signs + 1, doing)


class GroupProgress:
    """The places of the ranks of a group, and since when each rank is at its place."""

    def __init__(
        self,
        job_ranks: Iterable[int],
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._last_step_s = clock()
        self._places: dict[int, Place | None] = dict.fromkeys(job_ranks)
        self._since_s = dict.fromkeys(self._places, self._last_step_s)

    @property
    def job_ranks(self) -> list[int]:
        """The ranks that haven't been forgotten: those that are still starting."""
        return list(self._places)

    @property
    def is_quiet(self) -> bool:
        """Whether no rank got further for `timeout_s`."""
        return self._is_over(self._last_step_s)

    def hear(self, job_rank: int, place: Place | None) -> None:
        """Note where a rank is now; None for a rank that hasn't come yet."""
        before = self._places[job_rank]
        if place == before:
            return
        self._places[job_rank] = place
        self._since_s[job_rank] = self._clock()
        if place and (before is None or place.num_steps != before.num_steps):
            self._last_step_s = self._clock()

    def forget(self, job_rank: int) -> None:
        """Stop timing a rank, because it has finished its start-up or has ended."""
        self._places.pop(job_rank, None)
        self._since_s.pop(job_rank, None)

    def hanging_rank(self) -> int | None:
        """The rank that has been at its place for longest, if that is longer than `timeout_s`."""
        slowest = min(self._since_s, key=lambda rank: self._since_s[rank], default=None)
        return slowest if slowest is not None and self._is_over(self._since_s[slowest]) else None

    def describe(self, job_rank: int) -> str:
        """The sentence about a rank that hangs."""
        place = self._places[job_rank]
        if place is None:
            return (
                f"dwdp rank {job_rank} did not come to the rendezvous within {self._timeout_s:g} "
                f"s; {ADVICE}"
            )
        return (
            f"dwdp rank {job_rank} got no further for {self._timeout_s:g} s ({place.doing}); "
            f"{ADVICE}"
        )

    def describe_all(self) -> str:
        """The sentence about a group that hangs."""
        places = "; ".join(
            f"dwdp rank {rank} {_whereabouts(place)}" for rank, place in self._places.items()
        )
        return (
            f"No rank of the group got further for {self._timeout_s:g} s: {places}. Start every "
            "rank with the same version and options, or raise dwdp.timeout_s."
        )

    def _is_over(self, since_s: float) -> bool:
        return self._clock() - since_s > self._timeout_s


def _whereabouts(place: Place | None) -> str:
    return f"is at '{place.doing}'" if place else "has not come"
