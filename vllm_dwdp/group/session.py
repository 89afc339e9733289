# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A group's start-up, seen from one rank: agree, exchange, be done.

    open -> (load weights) -> meet -> layer, layer, ... -> finish

After `finish` nothing is left open and nothing ever waits for a peer again. Any failure, of this
rank or another, ends in `abort` or in a GroupError with the same sentence everywhere.
"""

import json
from collections.abc import Sequence

from vllm_dwdp.group.descriptor_client import DescriptorClient
from vllm_dwdp.group.descriptor_server import DescriptorServer, DescriptorSource
from vllm_dwdp.group.errors import GroupError
from vllm_dwdp.group.manifest import Manifest, check_manifests
from vllm_dwdp.group.rendezvous import Rendezvous


class GroupSession:
    def __init__(self, rendezvous: Rendezvous, *, timeout_s: float) -> None:
        self._rendezvous = rendezvous
        self._timeout_s = timeout_s
        self._server: DescriptorServer | None = None
        self._clients: dict[int, DescriptorClient] = {}

    def open(self) -> None:
        self._rendezvous.open()

    def meet(self, manifest: Manifest, source: DescriptorSource, *, num_layers: int) -> None:
        """Compare manifests, then connect to every peer's descriptor server."""
        manifests = self._rendezvous.gather("manifest", manifest.to_bytes())
        check_manifests([Manifest.from_bytes(data) for data in manifests])
        if self._rendezvous.dwdp_size == 1:
            return
        self._server = DescriptorServer(source, num_layers=num_layers)
        address = {"path": self._server.path, "token": self._server.token.hex()}
        addresses = self._rendezvous.gather("address", json.dumps(address).encode())
        for rank, data in enumerate(addresses):
            if rank != self._rendezvous.dwdp_rank:
                self._clients[rank] = self._connect(rank, data)

    def layer(self, peer_rank: int, layer_idx: int, expected_sizes: Sequence[int]) -> list[int]:
        """A peer's descriptors for a layer; the caller owns them."""
        return self._clients[peer_rank].layer(layer_idx, expected_sizes)

    def finish(self) -> None:
        """Wait until every rank has taken what it needs, then close everything."""
        self._rendezvous.gather("bound", b"1")
        self._close_sockets()

    def abort(self, error: BaseException) -> str:
        """Tell the others; returns the sentence that ends every rank. Never raises."""
        sentence = str(error) if isinstance(error, GroupError) else _one_line(error)
        sentence = self._rendezvous.fail(sentence)
        self._close_sockets()
        self._rendezvous.close()
        return sentence

    def _connect(self, rank: int, data: bytes) -> DescriptorClient:
        address = json.loads(data)
        return DescriptorClient(
            address["path"],
            bytes.fromhex(address["token"]),
            peer_rank=rank,
            timeout_s=self._timeout_s,
        )

    def _close_sockets(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        if self._server is not None:
            self._server.close()
            self._server = None


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
