# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Hands over memory as file descriptors, over Unix sockets between the processes of one host."""

import functools
import json
from collections.abc import Sequence
from typing import cast

from vllm_dwdp._core import HandleType
from vllm_dwdp.group.handover.base import HandleExchange, HandleSource
from vllm_dwdp.group.handover.descriptor.client import DescriptorClient
from vllm_dwdp.group.handover.descriptor.server import DescriptorServer, DescriptorSource
from vllm_dwdp.group.meet.rendezvous import Rendezvous


class DescriptorExchange(HandleExchange):
    """A server that answers the peers, and a client of each peer's server.

    timeout_s: the longest wait for one answer of a peer. subject: a name for the memory that is
    handed over, unique among the exchanges of a group.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        source: HandleSource,
        *,
        subject: str,
        num_parcels: int,
        timeout_s: float,
    ) -> None:
        self._rendezvous = rendezvous
        self._subject = subject
        descriptors = functools.partial(source, HandleType.FILE_DESCRIPTOR)
        self._source = cast(DescriptorSource, descriptors)
        self._num_parcels = num_parcels
        self._timeout_s = timeout_s
        self._server: DescriptorServer | None = None
        self._clients: dict[int, DescriptorClient] = {}

    def open(self) -> None:
        server = self._server = DescriptorServer(self._source, num_parcels=self._num_parcels)
        address = {"path": server.path, "token": server.token.hex()}
        addresses = self._rendezvous.gather(
            f"address for {self._subject}", json.dumps(address).encode()
        )
        for rank, data in enumerate(addresses):
            if rank != self._rendezvous.dwdp_rank:
                self._clients[rank] = self._connect(rank, json.loads(data))
        self._rendezvous.gather(f"connected for {self._subject}", b"1")
        server.remove_directory()

    def take_handles(self, peer_rank: int, parcel: int, expected_sizes: Sequence[int]) -> list[int]:
        return self._clients[peer_rank].take_handles(parcel, expected_sizes)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _connect(self, rank: int, address: dict[str, str]) -> DescriptorClient:
        job_rank, progress = self._rendezvous.job_ranks[rank], self._rendezvous.progress
        return DescriptorClient(
            address["path"],
            bytes.fromhex(address["token"]),
            peer_rank=job_rank,
            timeout_s=self._timeout_s,
            subject=self._subject,
            on_wait=lambda: progress.wait(f"an answer of dwdp rank {job_rank}"),
        )
