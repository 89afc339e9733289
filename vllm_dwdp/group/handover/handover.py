# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Finds a type of handle by which every rank of a group can map every other's memory, and uses it.

* File descriptors are tried first, then fabric handles. Each rank says which types can't work for
  it; every pair of ranks tries each remaining type on one page, before anything is loaded.
* All ranks see the results of all pairs, and so choose the same type.
* The ranks hand over their experts later, by the type that was chosen.
"""

import json
import logging
from collections.abc import Sequence

from vllm_dwdp._core import HandleType
from vllm_dwdp.group.errors import ExchangeRefused, PeersUnreachable
from vllm_dwdp.group.handover.base import HandleExchange, HandleSource
from vllm_dwdp.group.handover.descriptor.exchange import DescriptorExchange
from vllm_dwdp.group.handover.fabric import FabricExchange
from vllm_dwdp.group.handover.offer import Offer
from vllm_dwdp.group.handover.peer_probe import PeerProbe
from vllm_dwdp.group.handover.votes import Vote, reason_against
from vllm_dwdp.group.meet.process_identity import ProcessIdentity
from vllm_dwdp.group.meet.rendezvous import Rendezvous
from vllm_dwdp.memory.handle import TYPE_NAMES, Handle

logger = logging.getLogger("vllm.dwdp")


class Handover:
    """One rank's part in handing over memory: `try_types`, then `open`, then `close`."""

    def __init__(self, rendezvous: Rendezvous, *, timeout_s: float) -> None:
        self._rendezvous = rendezvous
        self._timeout_s = timeout_s
        self._handle_type: HandleType | None = None
        self._exchange: HandleExchange | None = None

    def try_types(self, probe: PeerProbe) -> HandleType | None:
        """Choose the first type that works between all pairs; None for a rank that is alone.

        Raises PeersUnreachable, with the same sentence on every rank, when no type works, and
        whatever HandleExchange.open raises.
        """
        if self._rendezvous.dwdp_size == 1:
            return None
        offer = Offer(ProcessIdentity.own(), probe.obstacles)
        offers = [
            Offer.from_bytes(data) for data in self._rendezvous.gather("offer", offer.to_bytes())
        ]
        reasons = []
        for handle_type in offer.obstacles:
            reason = self._reason_against(handle_type, offers, probe)
            if reason is None:
                self._handle_type = handle_type
                return handle_type
            logger.info(
                "Not every pair can share memory by %s: %s.", TYPE_NAMES[handle_type], reason
            )
            reasons.append(reason)
        raise PeersUnreachable("; ".join(reasons))

    def open(self, source: HandleSource, *, num_parcels: int) -> None:
        """Offer this rank's memory to the peers, and get ready to take theirs.

        Raises whatever HandleExchange.open raises.
        """
        if self._handle_type is not None:
            self._exchange = self._make_exchange("experts", self._handle_type, source, num_parcels)
            self._exchange.open()

    def take_handles(
        self, peer_rank: int, parcel: int, expected_sizes: Sequence[int]
    ) -> Sequence[Handle]:
        """See HandleExchange.take_handles. `peer_rank` counts within the group."""
        assert self._exchange is not None, "open() comes before take_handles()"
        return self._exchange.take_handles(peer_rank, parcel, expected_sizes)

    def close(self) -> None:
        """Close the connections to the peers; peers can't take handles after that."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    def _reason_against(
        self, handle_type: HandleType, offers: Sequence[Offer], probe: PeerProbe
    ) -> str | None:
        job_ranks, by = self._rendezvous.job_ranks, TYPE_NAMES[handle_type]
        ruled_out = [
            {
                job_ranks[peer]: offers[rank].obstacle(offers[peer], handle_type)
                for peer in range(len(offers))
                if peer != rank
            }
            for rank in range(len(offers))
        ]
        return reason_against(ruled_out, job_ranks, by=by) or reason_against(
            self._try(handle_type, probe), job_ranks, by=by
        )

    def _try(self, handle_type: HandleType, probe: PeerProbe) -> list[Vote]:
        """Hand over pages by this type of handle; returns the vote of each rank, in rank order."""
        exchange = self._make_exchange(
            "page", handle_type, lambda handle_type, _: probe.handles(handle_type), 1
        )
        sizes = probe.sizes(handle_type)
        try:
            exchange.open()
            vote = {
                job_rank: _reason_unreadable(exchange, probe, peer_rank, job_rank, sizes)
                for peer_rank, job_rank in enumerate(self._rendezvous.job_ranks)
                if peer_rank != self._rendezvous.dwdp_rank
            }
            ballots = self._rendezvous.gather(
                f"pages by {TYPE_NAMES[handle_type]}", json.dumps(list(vote.items())).encode()
            )
        finally:
            exchange.close()
        return [dict(json.loads(ballot)) for ballot in ballots]

    def _make_exchange(
        self, subject: str, handle_type: HandleType, source: HandleSource, num_parcels: int
    ) -> HandleExchange:
        if handle_type is HandleType.FABRIC:
            return FabricExchange(
                self._rendezvous, source, subject=subject, num_parcels=num_parcels
            )
        return DescriptorExchange(
            self._rendezvous,
            source,
            subject=subject,
            num_parcels=num_parcels,
            timeout_s=self._timeout_s,
        )


def _reason_unreadable(
    exchange: HandleExchange, probe: PeerProbe, peer_rank: int, job_rank: int, sizes: Sequence[int]
) -> str | None:
    try:
        pages = exchange.take_handles(peer_rank, 0, sizes)
    except ExchangeRefused as error:
        return str(error)
    return probe.reason(pages, peer_job_rank=job_rank)
