# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A group's start-up, seen from one rank: agree, exchange, be done.

    open -> (load weights) -> meet -> layer, layer, ... -> finish

After `finish` nothing is left open and nothing ever waits for a peer again. Any failure, of this
rank or another, ends in `abort`, whose sentence is the same everywhere.
"""

import json
from collections.abc import Sequence

from vllm_dwdp.group.descriptor_client import DescriptorClient
from vllm_dwdp.group.descriptor_server import DescriptorServer, DescriptorSource
from vllm_dwdp.group.errors import GroupError, ManifestMismatch, PeersUnreachable, RankFailed
from vllm_dwdp.group.failure_watch import LAST_PHASE
from vllm_dwdp.group.manifest import Manifest, check_manifests
from vllm_dwdp.group.peer_probe import PeerProbe
from vllm_dwdp.group.rendezvous import Rendezvous


class GroupSession:
    """`timeout_s` bounds each answer of a peer; the rendezvous bounds start-up as a whole."""

    def __init__(self, rendezvous: Rendezvous, *, timeout_s: float) -> None:
        self._rendezvous = rendezvous
        self._timeout_s = timeout_s
        self._doing = "joining"
        self._server: DescriptorServer | None = None
        self._clients: dict[int, DescriptorClient] = {}

    def open(self) -> None:
        self._rendezvous.open()
        self._doing = "loading"

    def meet(self, manifest: Manifest, source: DescriptorSource, *, num_layers: int) -> None:
        """Compare manifests, then connect to every peer's descriptor server.

        Raises ManifestMismatch or RankFailed, the same on every rank, or ExchangeRefused.
        """
        self._doing = "meeting its group"
        manifests = self._rendezvous.gather("manifest", manifest.to_bytes())
        check_manifests(
            [Manifest.from_bytes(data) for data in manifests], ranks=self._rendezvous.job_ranks
        )
        if self._rendezvous.dwdp_size > 1:
            self._server = DescriptorServer(source, num_layers=num_layers)
            self._connect_to_peers(self._server)
        self._doing = "binding its experts"

    def probe(self, probe: PeerProbe, layer_idx: int) -> None:
        """Map and read the page that each peer hands out as this layer; all ranks vote.

        Raises PeersUnreachable, the same on every rank, unless every pair can.
        """
        reasons = {}
        for peer_rank, job_rank in enumerate(self._rendezvous.job_ranks):
            if peer_rank != self._rendezvous.dwdp_rank:
                (fd,) = self.layer(peer_rank, layer_idx, [probe.num_bytes])
                reasons[job_rank] = probe.reason(fd, peer_job_rank=job_rank)
        votes = self._rendezvous.gather("probe", json.dumps(reasons).encode())
        _check_votes([json.loads(vote) for vote in votes], self._rendezvous.job_ranks)

    def gather(self, name: str, payload: bytes) -> list[bytes]:
        """What every rank of the group sends under a name, in rank order; each name once."""
        return self._rendezvous.gather(name, payload)

    def layer(self, peer_rank: int, layer_idx: int, expected_sizes: Sequence[int]) -> list[int]:
        """A peer's descriptors for a layer; the caller owns them. Ranks count in the group."""
        self._rendezvous.check()
        return self._clients[peer_rank].layer(layer_idx, expected_sizes)

    def finish(self) -> None:
        """Wait until every rank has taken what it needs, then close everything."""
        self._doing = "finishing start-up"
        self._rendezvous.gather(LAST_PHASE, b"1")
        self._close()

    def abort(self, error: BaseException) -> str:
        """Tell the others; returns the sentence that ends every rank. Never raises."""
        if isinstance(error, RankFailed | ManifestMismatch | PeersUnreachable):
            sentence = self._rendezvous.end(str(error))
        else:
            sentence = self._rendezvous.fail(_one_line(error), doing=self._doing)
        self._close()
        return sentence

    def _connect_to_peers(self, server: DescriptorServer) -> None:
        address = {"path": server.path, "token": server.token.hex()}
        addresses = self._rendezvous.gather("address", json.dumps(address).encode())
        for rank, data in enumerate(addresses):
            if rank != self._rendezvous.dwdp_rank:
                self._clients[rank] = self._connect(rank, json.loads(data))
        self._rendezvous.gather("connected", b"1")
        server.remove_directory()

    def _connect(self, rank: int, address: dict[str, str]) -> DescriptorClient:
        return DescriptorClient(
            address["path"],
            bytes.fromhex(address["token"]),
            peer_rank=self._rendezvous.job_ranks[rank],
            timeout_s=max(1.0, min(self._timeout_s, self._rendezvous.seconds_left)),
        )

    def _close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        if self._server is not None:
            self._server.close()
            self._server = None
        self._rendezvous.close()


def _check_votes(votes: Sequence[dict[str, str | None]], job_ranks: Sequence[int]) -> None:
    """votes: by rank, why it can't read a peer's memory, or None, by the peer's number."""
    failed = [
        (rank, peer, reason)
        for rank, vote in zip(job_ranks, votes, strict=True)
        for peer, reason in vote.items()
        if reason is not None
    ]
    if failed:
        rank, peer, reason = failed[0]
        pairs = ", ".join(f"{peer}->{rank}" for rank, peer, _ in failed)
        raise PeersUnreachable(
            f"dwdp rank {rank} can't read the memory of rank {peer}: {reason} "
            f"(pairs that can't: {pairs}, of {len(votes) * (len(votes) - 1)})"
        )


def _one_line(error: BaseException) -> str:
    text = str(error) if isinstance(error, GroupError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
