# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Hands over memory as fabric handles: bytes that are valid on every host of an NVLink domain.

The rendezvous store carries them and protects nothing: the domain decides who may use a handle
(nvidia-imex checks the user).
"""

import json
from collections.abc import Sequence
from typing import cast

from vllm_dwdp._core import DriverError, HandleType
from vllm_dwdp.group.errors import ExchangeRefused
from vllm_dwdp.group.handover.base import HandleExchange, HandleSource
from vllm_dwdp.group.meet.rendezvous import Rendezvous


class FabricExchange(HandleExchange):
    """Each rank posts the handles of all its parcels at once, or the reason why it can't.

    subject: a name for the memory that is handed over, unique among the exchanges of a group.
    """

    def __init__(
        self, rendezvous: Rendezvous, source: HandleSource, *, subject: str, num_parcels: int
    ) -> None:
        self._rendezvous = rendezvous
        self._subject = subject
        self._source = source
        self._num_parcels = num_parcels
        self._offers: list[bytes] = []

    def open(self) -> None:
        name = f"fabric handles of {self._subject}"
        self._offers = self._rendezvous.gather(name, json.dumps(self._offer()).encode())

    def take_handles(
        self, peer_rank: int, parcel: int, expected_sizes: Sequence[int]
    ) -> list[bytes]:
        offer = json.loads(self._offers[peer_rank])
        if offer["refusal"] is not None:
            raise self._error(peer_rank, f"the peer refused: {offer['refusal']}")
        blocks = offer["parcels"][parcel]
        if (sizes := [size for _, size in blocks]) != list(expected_sizes):
            reason = f"expected blocks of {list(expected_sizes)} bytes, got {sizes}"
            raise self._error(peer_rank, reason)
        return [bytes.fromhex(handle) for handle, _ in blocks]

    def close(self) -> None:
        self._offers.clear()

    def _offer(self) -> dict[str, object]:
        try:
            parcels = [self._export(parcel) for parcel in range(self._num_parcels)]
        except DriverError as error:
            return {"refusal": str(error)}
        return {"refusal": None, "parcels": parcels}

    def _export(self, parcel: int) -> list[tuple[str, int]]:
        blocks = self._source(HandleType.FABRIC, parcel)
        return [(cast(bytes, handle).hex(), num_bytes) for handle, num_bytes in blocks]

    def _error(self, peer_rank: int, reason: str) -> ExchangeRefused:
        rank = self._rendezvous.job_ranks[peer_rank]
        return ExchangeRefused(f"taking the {self._subject} of dwdp rank {rank}: {reason}")
