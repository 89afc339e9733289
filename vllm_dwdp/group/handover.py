# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Finds the type of handle by which every rank of a group reads every other's memory.

File descriptors first, then fabric handles. What a rank says of itself rules out types that can't
work; the others are tried on a page, by every pair. All ranks see all votes, and choose alike.
"""

import json
import logging
from collections.abc import Sequence

from vllm_dwdp._core import HandleType
from vllm_dwdp.group.descriptor_exchange import DescriptorExchange
from vllm_dwdp.group.errors import ExchangeRefused, PeersUnreachable
from vllm_dwdp.group.fabric_exchange import FabricExchange
from vllm_dwdp.group.handle_exchange import HandleExchange, HandleSource
from vllm_dwdp.group.offer import Offer
from vllm_dwdp.group.peer_probe import PeerProbe
from vllm_dwdp.group.process_identity import ProcessIdentity
from vllm_dwdp.group.rendezvous import Rendezvous
from vllm_dwdp.group.votes import Vote, reason_against
from vllm_dwdp.handle import TYPE_NAMES, Handle

logger = logging.getLogger("vllm.dwdp")


class Handover:
    """`source` has layers up to `num_layers`; the page that is tried stands behind them."""

    def __init__(
        self,
        rendezvous: Rendezvous,
        source: HandleSource,
        probe: PeerProbe,
        *,
        num_layers: int,
        timeout_s: float,
    ) -> None:
        self._rendezvous = rendezvous
        self._source = source
        self._probe = probe
        self._num_layers = num_layers
        self._timeout_s = timeout_s
        self._exchange: HandleExchange | None = None

    def settle(self) -> HandleType | None:
        """The first type that works between all pairs; its exchange stays open. Alone: None.

        Raises PeersUnreachable, the same on every rank, when none does, and what
        HandleExchange.open raises.
        """
        if self._rendezvous.dwdp_size == 1:
            return None
        offer = Offer(ProcessIdentity.own(), self._probe.obstacles)
        offers = [
            Offer.from_bytes(data) for data in self._rendezvous.gather("offer", offer.to_bytes())
        ]
        reasons = []
        for handle_type in offer.obstacles:
            reason = self._reason_against(handle_type, offers)
            if reason is None:
                return handle_type
            logger.info("Not every pair can share by %s: %s.", TYPE_NAMES[handle_type], reason)
            reasons.append(reason)
        raise PeersUnreachable("; ".join(reasons))

    def layer(
        self, peer_rank: int, layer_idx: int, expected_sizes: Sequence[int]
    ) -> Sequence[Handle]:
        """A peer's handles for a layer; the caller owns them. Ranks count in the group."""
        assert self._exchange is not None, "settle() comes before layer()"
        return self._exchange.layer(peer_rank, layer_idx, expected_sizes)

    def close(self) -> None:
        """Let go of the peers; it keeps no handle of this rank's memory alive."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    def _reason_against(self, handle_type: HandleType, offers: Sequence[Offer]) -> str | None:
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
            self._try(handle_type), job_ranks, by=by
        )

    def _try(self, handle_type: HandleType) -> list[Vote]:
        """Hand pages over by this type; what each rank read."""
        self.close()
        self._exchange = self._make_exchange(handle_type)
        self._exchange.open()
        vote = {
            job_rank: self._reason_unreadable(peer_rank, job_rank)
            for peer_rank, job_rank in enumerate(self._rendezvous.job_ranks)
            if peer_rank != self._rendezvous.dwdp_rank
        }
        ballots = self._rendezvous.gather(
            f"pages by {TYPE_NAMES[handle_type]}", json.dumps(list(vote.items())).encode()
        )
        return [dict(json.loads(ballot)) for ballot in ballots]

    def _make_exchange(self, handle_type: HandleType) -> HandleExchange:
        num_layers = self._num_layers + 1
        if handle_type is HandleType.FABRIC:
            return FabricExchange(self._rendezvous, self._handles, num_layers=num_layers)
        return DescriptorExchange(
            self._rendezvous, self._handles, num_layers=num_layers, timeout_s=self._timeout_s
        )

    def _handles(self, handle_type: HandleType, layer_idx: int) -> list[tuple[Handle, int]]:
        if layer_idx == self._num_layers:
            return self._probe.handles(handle_type)
        return self._source(handle_type, layer_idx)

    def _reason_unreadable(self, peer_rank: int, job_rank: int) -> str | None:
        try:
            (page,) = self.layer(peer_rank, self._num_layers, [self._probe.num_bytes])
        except ExchangeRefused as error:
            return str(error)
        return self._probe.reason(page, peer_job_rank=job_rank)
