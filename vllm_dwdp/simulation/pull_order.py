# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""In which order a rank reads its peers, and in pieces of which size."""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple


class Order(StrEnum):
    """The peer that comes first, second, ... in each round of a rank's pulls."""

    SAME = "same"
    """Ascending, so that every rank begins with the same peer."""
    ROTATED = "rotated"
    """From the next rank on, so that ranks in step read different peers."""
    SHUFFLED = "shuffled"
    """A new random order for each layer that a rank fetches."""


class PeerSlice(NamedTuple):
    """A pull of `num_bytes` from `peer`, which is a place in the group."""

    peer: int
    num_bytes: float


def peers_in_order(rank: int, num_ranks: int, order: Order) -> list[int]:
    """The other ranks of a group, in the order in which `rank` reads them."""
    first = 0 if order is Order.SAME else rank + 1
    turns = ((first + step) % num_ranks for step in range(num_ranks))
    return [peer for peer in turns if peer != rank]


def slices_in_rounds(
    peers: Sequence[int], peer_bytes: float, slice_bytes: float
) -> Iterator[PeerSlice]:
    """Cut each peer's bytes into slices, and take one slice of each peer in turn.

    The rounds are those of layout.copies.CopyPlan.
    """
    whole, rest = divmod(peer_bytes, min(slice_bytes, peer_bytes) or 1.0)
    sizes = [slice_bytes] * int(whole) + [rest] * (rest > 0)
    for num_bytes in sizes:
        for peer in peers:
            yield PeerSlice(peer, min(num_bytes, peer_bytes))
