# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One rank's part in the start-up of its group: it compares manifests and exchanges handles.

    open -> try_peers -> (load weights) -> meet -> hand_over -> take_handles, ... -> finish

After `finish` nothing is left open, and this rank never waits for a peer again. After any failure,
of this rank or of another, the caller calls `abort`, which ends every rank with the same sentence.
"""

from collections.abc import Callable, Sequence

from vllm_dwdp._core import HandleType
from vllm_dwdp.group.errors import GroupError, ManifestMismatch, PeersUnreachable, RankFailed
from vllm_dwdp.group.handover.base import HandleSource
from vllm_dwdp.group.handover.handover import Handover
from vllm_dwdp.group.handover.peer_probe import PeerProbe
from vllm_dwdp.group.meet.failure_watch import LAST_PHASE
from vllm_dwdp.group.meet.loading_turns import LoadingTurns
from vllm_dwdp.group.meet.manifest import Manifest, check_manifests
from vllm_dwdp.group.meet.progress import Phase
from vllm_dwdp.group.meet.rendezvous import Rendezvous
from vllm_dwdp.memory.handle import Handle

Gather = Callable[[str, bytes], Sequence[bytes]]
"""See GroupSession.gather."""


class GroupSession:
    """One rank's part in the start-up.

    timeout_s: the longest wait for one answer of a peer. Ranks that hang are found by the failure
    watch of the rendezvous. load_concurrency: see LoadingTurns.
    """

    def __init__(
        self, rendezvous: Rendezvous, *, timeout_s: float, load_concurrency: int | None = None
    ) -> None:
        self._rendezvous = rendezvous
        self.loading_turns = LoadingTurns(rendezvous, load_concurrency)
        self._progress = rendezvous.progress
        self._handover = Handover(rendezvous, timeout_s=timeout_s)
        self._fringe_parcel = -1

    def open(self) -> None:
        """Join the rendezvous.

        Raises RendezvousRefused or RankFailed.
        """
        self._rendezvous.open()

    def try_peers(self, probe: PeerProbe) -> HandleType | None:
        """Have every pair of ranks share a page, before anything is loaded.

        Returns the type of handle that works between all pairs, or None for a rank that is alone.

        Raises PeersUnreachable or RankFailed, the same on every rank, or GroupError.
        """
        self.enter(Phase.TRYING_PEERS)
        handle_type = self._handover.try_types(probe)
        self.enter(Phase.LOADING)
        return handle_type

    def enter(self, phase: Phase) -> None:
        """Note that this rank begins another phase of its start-up."""
        self._progress.enter(phase)

    def step(self, detail: str) -> None:
        """Note that this rank got further; `detail` says where it is now.

        Raises RankFailed if the job has failed in the meantime.
        """
        self._progress.step(detail)
        self._rendezvous.check()

    def meet(self, manifest: Manifest) -> None:
        """Compare this rank's manifest with those of its peers.

        Raises ManifestMismatch or RankFailed, the same on every rank.
        """
        self.enter(Phase.MEETING)
        manifests = self._rendezvous.gather("manifest", manifest.to_bytes())
        check_manifests(
            [Manifest.from_bytes(data) for data in manifests], ranks=self._rendezvous.job_ranks
        )

    def hand_over(self, source: HandleSource, *, num_parcels: int) -> None:
        """Offer this rank's memory, by the type of handle that `try_peers` found.

        Raises RankFailed, the same on every rank, or GroupError.
        """
        self._fringe_parcel = num_parcels - 1
        self._handover.open(source, num_parcels=num_parcels)
        self.enter(Phase.BINDING)

    @property
    def job_ranks(self) -> range:
        """The group's ranks by their numbers in the job."""
        return self._rendezvous.job_ranks

    def gather(self, name: str, payload: bytes) -> list[bytes]:
        """Send a payload, and return those of all ranks of the group, in rank order.

        Every rank calls this with the same name, and each name serves once. Raises RankFailed.
        """
        return self._rendezvous.gather(name, payload)

    def take_handles(
        self, peer_rank: int, parcel: int, expected_sizes: Sequence[int]
    ) -> Sequence[Handle]:
        """Get the handles of a peer's parcel: a layer's number, or the last one for the fringe.

        See HandleExchange.take_handles; also raises RankFailed, as `step` does.
        """
        what = "fringe" if parcel == self._fringe_parcel else f"layer {parcel}"
        self.step(f"{what} of dwdp rank {self._rendezvous.job_ranks[peer_rank]}")
        return self._handover.take_handles(peer_rank, parcel, expected_sizes)

    def finish(self) -> None:
        """Wait until every rank has taken what it needs, then close everything."""
        self.enter(Phase.FINISHING)
        self._rendezvous.gather(LAST_PHASE, b"1")
        self._close()

    def abort(self, error: BaseException) -> str:
        """Tell the peers of an error, and return the sentence that ends every rank. Never raises.

        If another error was posted first, this returns the sentence of that one.
        """
        sentence = self._rendezvous.post_failure(self._sentence_of(error))
        self._close()
        return sentence

    def _sentence_of(self, error: BaseException) -> str:
        if isinstance(error, RankFailed | ManifestMismatch | PeersUnreachable):
            return str(error)  # the same on every rank
        rank, phase = self._rendezvous.job_rank, self._progress.phase
        return f"dwdp rank {rank} failed while {phase}: {_one_line(error)}"

    def _close(self) -> None:
        self._handover.close()
        self._rendezvous.close()


def _one_line(error: BaseException) -> str:
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return "it was told to end"
    text = str(error) if isinstance(error, GroupError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
