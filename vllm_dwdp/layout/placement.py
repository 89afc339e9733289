# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which rank owns which experts: pure arithmetic over counts.

* Every rank owns one contiguous range of experts, so that a view needs few mappings.
* Every expert has at least one owner; ranges overlap only when redundancy was asked for.
* Every rank computes the same placement from the same numbers.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class PlacementError(ValueError):
    """The experts can't be spread as asked."""


class Segment(NamedTuple):
    """A run of experts `[start, end)` with the same owners, in ascending rank order.

    on_host: whether these experts lie in host memory near their owner's GPU, not on the GPU.
    """

    start: int
    end: int
    owners: tuple[int, ...]
    on_host: bool = False


@dataclass(frozen=True)
class Placement:
    """Ranges of experts per dwdp_rank: `ranges[rank] == (start, end)`, end exclusive.

    host_experts: how many of each rank's experts lie in host memory: the last ones of its range.
    """

    num_experts: int
    ranges: tuple[tuple[int, int], ...]
    host_experts: int = 0

    @classmethod
    def make(
        cls,
        *,
        num_experts: int,
        dwdp_size: int,
        num_experts_per_worker: int | None = None,
        host_experts: int = 0,
    ) -> "Placement":
        """Spread `num_experts` over `dwdp_size` ranks.

        Without `num_experts_per_worker` the spread is as even as possible, and the first ranks own
        one expert more than the others. With it every rank owns that many experts, and the starts
        of the ranges are spread evenly (paper: E = size + (N-1) x stride); experts in several
        ranges have redundant copies. Raises PlacementError if the numbers don't fit together.
        """
        if not 1 <= dwdp_size <= num_experts:
            raise PlacementError(
                f"dwdp_size must be between 1 and the model's {num_experts} experts, "
                f"got {dwdp_size}; start fewer ranks per group."
            )
        assert not host_experts or num_experts_per_worker is None, "DwdpConfig refuses both"
        _check_host_experts(num_experts, dwdp_size, host_experts)
        if num_experts_per_worker is None:
            return cls(num_experts, tuple(_even_ranges(num_experts, dwdp_size)), host_experts)
        _check_size(num_experts, dwdp_size, num_experts_per_worker)
        return cls(
            num_experts, tuple(_sized_ranges(num_experts, dwdp_size, num_experts_per_worker))
        )

    @property
    def dwdp_size(self) -> int:
        return len(self.ranges)

    def local_experts(self, rank: int) -> range:
        return range(*self.ranges[rank])

    def segments(self) -> tuple[Segment, ...]:
        """The expert axis, cut wherever the experts' owners or their kind of memory change."""
        edges = {edge for bounds in self.ranges for edge in bounds}
        cuts = sorted(edges | {end - self.host_experts for _, end in self.ranges})
        return tuple(
            Segment(a, b, self._owners(a), self._is_on_host(a)) for a, b in itertools.pairwise(cuts)
        )

    def source(self, segment: Segment, rank: int, turn: int) -> int:
        """The rank out of whose memory `rank` reads a segment: `rank` if it owns it, else an owner.

        Reads of redundant experts are balanced over their owners. Where the balance within one
        tensor is uneven, `turn`, a number that differs from tensor to tensor, decides which owner
        gets more.
        """
        return _sources(self, rank, turn % self.dwdp_size)[segment]

    def _is_on_host(self, expert: int) -> bool:
        return any(end - self.host_experts <= expert < end for _, end in self.ranges)

    def _owners(self, expert: int) -> tuple[int, ...]:
        return tuple(r for r, (start, end) in enumerate(self.ranges) if start <= expert < end)


@functools.cache
def _sources(placement: Placement, rank: int, turn: int) -> dict[Segment, int]:
    """Assigns each segment to its least loaded owner.

    Segments with the fewest owners are assigned first; among equals, the largest ones.
    """
    size = placement.dwdp_size
    load = [0] * size
    found: dict[Segment, int] = {}
    for segment in sorted(placement.segments(), key=lambda s: (len(s.owners), s.start - s.end)):
        owner = min(segment.owners, key=lambda o: (load[o], (o - rank - turn) % size))
        found[segment] = rank if rank in segment.owners else owner
        load[found[segment]] += segment.end - segment.start
    return found


def _even_ranges(num_experts: int, dwdp_size: int) -> Iterator[tuple[int, int]]:
    base, more = divmod(num_experts, dwdp_size)
    for rank in range(dwdp_size):
        start = rank * base + min(rank, more)
        yield start, start + base + (rank < more)


def _sized_ranges(num_experts: int, dwdp_size: int, size: int) -> Iterator[tuple[int, int]]:
    room = num_experts - size
    for rank in range(dwdp_size):
        start = room * rank // max(1, dwdp_size - 1)
        yield start, start + size


def _check_host_experts(num_experts: int, dwdp_size: int, host_experts: int) -> None:
    fewest = num_experts // dwdp_size
    if not 0 <= host_experts < fewest:
        raise PlacementError(
            f"host_experts must be less than the {fewest} experts of a rank, some of which stay on "
            f"its GPU, got {host_experts}."
        )


def _check_size(num_experts: int, dwdp_size: int, size: int) -> None:
    least = -(-num_experts // dwdp_size)
    if not least <= size <= num_experts:
        raise PlacementError(
            f"num_experts_per_worker must be between {least} and {num_experts} for "
            f"{num_experts} experts on {dwdp_size} ranks, got {size}; leave it out for an even "
            "spread."
        )
