# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A group's start-up, seen from one rank: agree, exchange, be done.

    open -> (load weights) -> meet -> exchange -> layer, layer, ... -> finish

After `finish` nothing is left open and nothing ever waits for a peer again. Any failure, of this
rank or another, ends in `abort`, whose sentence is the same everywhere.
"""

from collections.abc import Sequence

from vllm_dwdp._core import HandleType
from vllm_dwdp.group.errors import GroupError, ManifestMismatch, PeersUnreachable, RankFailed
from vllm_dwdp.group.failure_watch import LAST_PHASE
from vllm_dwdp.group.handle_exchange import HandleSource
from vllm_dwdp.group.handover import Handover
from vllm_dwdp.group.manifest import Manifest, check_manifests
from vllm_dwdp.group.peer_probe import PeerProbe
from vllm_dwdp.group.private_directory import check_place
from vllm_dwdp.group.rendezvous import Rendezvous
from vllm_dwdp.handle import Handle


class GroupSession:
    """`timeout_s` bounds each answer of a peer; the rendezvous bounds start-up as a whole."""

    def __init__(self, rendezvous: Rendezvous, *, timeout_s: float) -> None:
        self._rendezvous = rendezvous
        self._timeout_s = timeout_s
        self._doing = "joining"
        self._handover: Handover | None = None

    def open(self) -> None:
        """Meet the others; find out before loading what would fail after it."""
        self._rendezvous.open()
        if self._rendezvous.dwdp_size > 1:
            check_place()
        self._doing = "loading"

    def meet(self, manifest: Manifest) -> None:
        """Compare manifests.

        Raises ManifestMismatch or RankFailed, the same on every rank.
        """
        self._doing = "meeting its group"
        manifests = self._rendezvous.gather("manifest", manifest.to_bytes())
        check_manifests(
            [Manifest.from_bytes(data) for data in manifests], ranks=self._rendezvous.job_ranks
        )

    def exchange(
        self, source: HandleSource, probe: PeerProbe, *, num_layers: int
    ) -> HandleType | None:
        """Offer this rank's memory, by the type of handle that works between all pairs.

        Returns it, or None for a rank alone.

        Raises PeersUnreachable or RankFailed, the same on every rank, or ExchangeRefused.
        """
        self._handover = Handover(
            self._rendezvous, source, probe, num_layers=num_layers, timeout_s=self._timeout_s
        )
        handle_type = self._handover.settle()
        self._doing = "binding its experts"
        return handle_type

    @property
    def job_ranks(self) -> range:
        """The group's ranks, as the job numbers them."""
        return self._rendezvous.job_ranks

    def gather(self, name: str, payload: bytes) -> list[bytes]:
        """What every rank of the group sends under a name, in rank order; each name once."""
        return self._rendezvous.gather(name, payload)

    def layer(
        self, peer_rank: int, layer_idx: int, expected_sizes: Sequence[int]
    ) -> Sequence[Handle]:
        """A peer's handles for a layer; the caller owns them. Ranks count in the group."""
        assert self._handover is not None, "exchange() comes before layer()"
        self._rendezvous.check()
        return self._handover.layer(peer_rank, layer_idx, expected_sizes)

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

    def _close(self) -> None:
        if self._handover is not None:
            self._handover.close()
            self._handover = None
        self._rendezvous.close()


def _one_line(error: BaseException) -> str:
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return "it was told to end"
    text = str(error) if isinstance(error, GroupError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
