# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures the links of a rank to its peers one after the other, while all ranks measure theirs.

    turn     1          2          3
    rank 0   reads 1    reads 2    reads 3
    rank 1   reads 2    reads 3    reads 0
    rank 2   reads 3    reads 0    reads 1

* In each turn no two ranks read the same peer, and all links are in use, as in service.
* In the last turn all ranks read the host's memory, if the group keeps experts there.
* Turns end by the clock, not by a message: ranks that leave the barrier together stay in step.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from vllm_dwdp._core import View
from vllm_dwdp.device.bandwidth import Bandwidths, LinkProbe
from vllm_dwdp.layout.rank_layout import RankLayout

TURN_S = 0.1
"""Seconds for which a peer's memory is copied in its turn, and for which it is read: twice the most
time that may pass between two ranks leaving the barrier."""


class Places(NamedTuple):
    """Bytes of blocks to measure, as tensors in the direct views of a rank.

    own: bytes in the rank's own memory. over_links: by the rank that they are read from, bytes
    behind a link; the rank's own number stands for its host.
    """

    own: list[torch.Tensor]
    over_links: dict[int, list[torch.Tensor]]


class PeerLink(NamedTuple):
    """Bytes per second out of one peer's memory: by the copier, and by a kernel."""

    copies: float
    reads: float


@dataclass(frozen=True)
class Links:
    """The measured links of a rank.

    own: bytes per second that a kernel reads of own memory, or over the fastest link if this rank
        has no block of its own.
    peers: by the rank of the group that is read from; this rank's own number stands for experts in
        its host's memory. Ranks that aren't read from are absent.
    """

    rank: int
    own: float
    peers: Mapping[int, PeerLink]

    def bandwidths(self, bytes_by_peer: Sequence[int]) -> Bandwidths:
        """The bandwidths of all peers together, which a rank reads one after the other.

        bytes_by_peer: bytes that the rank reads from each peer; slower peers take more of the time.
        """
        num_bytes = sum(bytes_by_peer[peer] for peer in self.peers)
        copy_s = sum(bytes_by_peer[peer] / link.copies for peer, link in self.peers.items())
        read_s = sum(bytes_by_peer[peer] / link.reads for peer, link in self.peers.items())
        return Bandwidths(num_bytes / copy_s, num_bytes / read_s, self.own)

    def describe(self) -> str:
        """The figures, for the log."""
        found = ", ".join(
            f"{self._name(peer)} {link.copies / 1e9:.1f} and {link.reads / 1e9:.1f}"
            for peer, link in sorted(self.peers.items())
        )
        return (
            "Bandwidths in GB/s, of copies and of a kernel's reads, by rank of the group: "
            f"{found}; own memory is read at {self.own / 1e9:.1f}"
        )

    def _name(self, peer: int) -> str:
        return "the host" if peer == self.rank else f"rank {peer}"

    def gb_per_s(self, num_ranks: int) -> dict[str, Any]:
        """The figures for statistics: lists by rank of the group, None where nothing is read."""
        peers = [self.peers.get(rank) for rank in range(num_ranks)]
        return {
            "own": round(self.own / 1e9, 3),
            "copies": [link and round(link.copies / 1e9, 3) for link in peers],
            "reads": [link and round(link.reads / 1e9, 3) for link in peers],
        }


def measure_links(probe: LinkProbe, places: Places, *, rank: int, num_ranks: int) -> Links:
    """Measure a rank's links, at least one; all ranks of the group call this at the same time."""
    end = time.monotonic()
    peers: dict[int, PeerLink] = {}
    for step in range(1, num_ranks + 1):
        peer = (rank + step) % num_ranks
        copied, end = end + TURN_S, end + 2 * TURN_S
        if sources := places.over_links.get(peer):
            peers[peer] = PeerLink(probe.copies(sources, copied), probe.reads(sources, end))
        time.sleep(max(0.0, end - time.monotonic()))
    if places.own:
        return Links(rank, probe.reads(places.own, end + TURN_S), peers)
    return Links(rank, max(link.reads for link in peers.values()), peers)


def places_of(
    layout: RankLayout,
    direct: Sequence[Sequence[View]],
    *,
    num_bytes: int,
    bytes_of: Callable[[View], torch.Tensor],
) -> Places:
    """The first `num_bytes` bytes that a rank reads from each place, taken from layers in order.

    direct: the direct views, by layer. bytes_of: returns a view as uint8 [num_bytes].
    """
    found = Places([], {})
    for layer_idx, views in enumerate(direct):
        shown = [bytes_of(view) for view in views]
        for block in layout.sourced_blocks(layer_idx):
            is_missing = block.is_missing(layout.rank)
            parts = found.over_links.setdefault(block.source, []) if is_missing else found.own
            left = num_bytes - sum(part.nbytes for part in parts)
            if size := min(left, block.extent.num_bytes):
                start = block.extent.start
                parts.append(shown[block.tensor_idx][start : start + size])
    return found
