# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How a rank gets the experts of a layer out of its peers' memory."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import simpy

from vllm_dwdp.simulation.links import Links
from vllm_dwdp.simulation.pull_order import Order, PeerSlice, peers_in_order, slices_in_rounds


class Copier(Protocol):
    """The copies of one rank. The rank asks for one layer after another, never for two at once."""

    layer_bytes: float
    """Bytes that the rank reads for one layer."""

    def fetch_layer(self) -> simpy.Event:
        """Begin to copy a layer's missing experts; the event happens when all have come."""


@dataclass(frozen=True)
class GroupPlace:
    """The place of a rank in its group, whose first rank has the number `first` in the job."""

    rank: int
    first: int
    size: int

    @property
    def num_peers(self) -> int:
        return self.size - 1


class SliceCopier:
    """Pulls slice after slice over shared links, `in_flight` of them at a time."""

    def __init__(
        self,
        env: simpy.Environment,
        links: Links,
        place: GroupPlace,
        *,
        peer_bytes: float,
        slice_bytes: float,
        in_flight: int,
        order: Order,
        rng: np.random.Generator,
    ) -> None:
        self.layer_bytes = peer_bytes * place.num_peers
        self._env = env
        self._links = links
        self._place = place
        self._in_flight = in_flight
        self._order = order
        self._rng = rng
        self._peers = peers_in_order(place.rank, place.size, order)
        self._slices = list(slices_in_rounds(self._peers, peer_bytes, slice_bytes))

    def fetch_layer(self) -> simpy.Event:
        slices = iter(self._ordered())
        lanes = [self._env.process(self._pull(slices)) for _ in range(self._in_flight)]
        return lanes[0] if len(lanes) == 1 else self._env.all_of(lanes)

    def _pull(self, slices: Iterator[PeerSlice]) -> Generator[simpy.Event, object, None]:
        """The process that pulls slices until none is left, one at a time."""
        for peer, num_bytes in slices:
            source = self._place.first + peer
            yield self._links.pull(self._place.first + self._place.rank, source, num_bytes)

    def _ordered(self) -> list[PeerSlice]:
        if self._order is not Order.SHUFFLED:
            return self._slices
        other = dict(zip(self._peers, self._rng.permutation(self._peers).tolist(), strict=True))
        return [PeerSlice(other[peer], num_bytes) for peer, num_bytes in self._slices]


class SpreadCopier:
    """Reads all peers at once and evenly: what interleaved slices come to if they are small.

    A group of ranks that read each other evenly asks no source for more than one rank's ingress, so
    no two of them slow each other, and a layer takes one event, however large the group is. If a
    source's egress is smaller than a rank's ingress, a layer takes as long as if all ranks of the
    group were reading all the time.
    """

    def __init__(self, env: simpy.Environment, *, layer_bytes: float, bytes_per_s: float) -> None:
        self.layer_bytes = layer_bytes
        self._env = env
        self._seconds = layer_bytes / bytes_per_s

    def fetch_layer(self) -> simpy.Event:
        return self._env.timeout(self._seconds)
