# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A thread that looks out for failures of a rank's peers while the rank itself loads weights.

* Every rank ends with the same sentence: the first one that any rank posts in the store.
* When a rank dies, ranks on the same host see at once that its process has ended. Ranks on other
  hosts notice after `timeout_s`.
* A rank that hangs is noticed after `timeout_s`, by its peers or by its own watch. The watch ends
  the rank if it hangs on, in a call of the driver for example, when the others end.
* A rank of another job that comes here by mistake is named in the log, and ends no rank.
* A rank that has posted the last phase may end: no rank needs it any more.
"""

import atexit
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

from vllm_dwdp.group.errors import SecretMismatch, StoreLost
from vllm_dwdp.group.meet.process_identity import ProcessIdentity
from vllm_dwdp.group.meet.progress import GroupProgress, Place, Progress
from vllm_dwdp.group.meet.store import RendezvousStore

logger = logging.getLogger("vllm.dwdp")
LAST_PHASE = "bound"
FAILURE_KEY = "failure"
TURNED_AWAY_KEY = "turned away"
POLL_S = 0.1
ECHO_S = 1.0
POST_S = 5.0
MAX_LOOK_S = 1.0
HEAR_S = 30.0
"""A rank that hasn't noticed within so long that the start has failed hangs, and is ended."""

MAX_STRANGER = 200
"""Characters that are logged of what a rank of another job says of itself."""

LOOKS_PER_TIMEOUT = 20
"""How often a rank posts its place within `timeout_s`; at least once in MAX_LOOK_S."""


def rank_key(phase: str, job_rank: int) -> str:
    return f"{phase}/{job_rank}"


def place_key(job_rank: int) -> str:
    return rank_key("place", job_rank)


class FailureWatch:
    """One rank's watch over the others of its group, in a thread from construction to `stop`."""

    def __init__(
        self,
        store: RendezvousStore,
        identity: ProcessIdentity,
        *,
        job_rank: int,
        peer_ranks: Sequence[int],
        one_host: bool,
        progress: Progress,
        timeout_s: float,
        end_rank: Callable[[str], None],
        host_rank: int = 0,
    ) -> None:
        """end_rank: ends this process, which hangs, for the reason in a sentence.

        host_rank: the rank that hosts the store.
        """
        self._store = store
        self._end_rank = end_rank
        self._identity = identity
        self._job_rank = job_rank
        self._one_host = one_host
        self._host_rank = host_rank
        self._unknown_ranks = set(peer_ranks) - {job_rank}
        self._peers: dict[int, ProcessIdentity] = {}
        self._progress = progress
        self._group = GroupProgress(peer_ranks, timeout_s=timeout_s)
        self._look_s = min(MAX_LOOK_S, timeout_s / LOOKS_PER_TIMEOUT)
        self._next_look_s = time.monotonic()
        self._is_over = threading.Event()
        self._is_stopped = threading.Event()
        self._sentence: str | None = None
        self._turned_away: bytes | None = None
        self._thread = threading.Thread(target=self._run, name="dwdp-watch", daemon=True)
        self._thread.start()
        # A daemon thread inside torch while the interpreter finalises would abort the process.
        atexit.register(self.stop)

    @property
    def sentence(self) -> str | None:
        """Why the job ends; None while it doesn't."""
        return self._sentence

    def post_failure(self, sentence: str) -> str:
        """Post a failure, and return the sentence that ends every rank. Never raises.

        If another failure was posted first, this returns the sentence of that one. A failure often
        follows from a peer's death, so this waits a moment in which the watch may notice that.
        """
        self._is_over.wait(ECHO_S)
        return self._sentence or self._publish(sentence)

    def stop(self) -> None:
        atexit.unregister(self.stop)
        self._is_stopped.set()
        self._is_over.set()
        self._thread.join(POST_S)

    def _run(self) -> None:
        while not self._is_over.wait(POLL_S):
            try:
                self._look()
            except SecretMismatch as mismatch:
                self._publish(str(mismatch))
            except StoreLost as lost:
                self._keep(str(lost))
            except Exception as error:
                self._publish(
                    f"dwdp rank {self._job_rank} failed while it watched its peers: "
                    f"{type(error).__name__}: {error}"
                )
        if self._sentence is not None and not self._is_stopped.wait(HEAR_S):
            logger.error("%s", self._sentence)
            self._end_rank(self._sentence)

    def _look(self) -> None:
        posted = self._store.get(FAILURE_KEY)
        if posted is not None:
            self._keep(posted.decode())
            return
        self._meet_peers()
        self._name_strangers()
        for rank, peer in self._peers.items():
            if cause := self._cause(rank, peer):
                self._publish(f"dwdp rank {rank} {cause}.")
                return
        if time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + self._look_s
            self._look_for_hangs()

    def _look_for_hangs(self) -> None:
        """Post where this rank is, and end the start if a rank or the whole group hangs."""
        self._store.set(place_key(self._job_rank), self._progress.place.to_bytes())
        for rank in self._group.job_ranks:
            posted = self._store.get(place_key(rank))
            self._group.hear(rank, Place.from_bytes(posted) if posted else None)
        hanging = self._group.hanging_rank()
        if hanging is not None and self._has_left(hanging):
            self._group.forget(hanging)
        elif hanging is not None:
            self._publish(self._group.describe(hanging))
        elif self._group.is_quiet:
            self._publish(self._group.describe_all())

    def _meet_peers(self) -> None:
        for rank in tuple(self._unknown_ranks):
            if (data := self._store.get(rank_key("hello", rank))) is not None:
                self._peers[rank] = ProcessIdentity.from_bytes(data)
                self._unknown_ranks.remove(rank)

    def _name_strangers(self) -> None:
        """Log a rank that was turned away: if it belongs to this job, the job waits in vain."""
        stranger = self._store.get_unsigned(TURNED_AWAY_KEY)
        if stranger is not None and stranger != self._turned_away:
            self._turned_away = stranger
            logger.warning(
                "A rank of another job came to the rendezvous of this one and left: %s. If it is "
                "meant to be a rank of this job, start it again with the options of this rank.",
                " ".join(stranger.decode(errors="replace").split())[:MAX_STRANGER],
            )

    def _cause(self, rank: int, peer: ProcessIdentity) -> str | None:
        reason = self._identity.reason_not_reachable(peer) if self._one_host else None
        if reason:
            return f"can't share its experts: {reason}"
        if not peer.has_ended(self._identity):
            return None
        if self._has_left(rank):
            return None
        host = ", which hosts the rendezvous," if rank == self._host_rank else ""
        return f"(process {peer.pid}){host} ended during start-up"

    def _has_left(self, rank: int) -> bool:
        """Whether a peer has reached the last phase, after which no rank needs it."""
        return self._store.get(rank_key(LAST_PHASE, rank)) is not None

    def _publish(self, sentence: str) -> str:
        with contextlib.suppress(StoreLost):
            sentence = self._store.set_once(FAILURE_KEY, sentence, patience_s=POST_S)
        self._keep(sentence)
        return sentence

    def _keep(self, sentence: str) -> None:
        """Keep the sentence, then tell the store's host that it has been read."""
        self._sentence = self._sentence or sentence
        self._is_over.set()
        with contextlib.suppress(StoreLost):
            self._store.set(rank_key("left", self._job_rank), b"1", patience_s=POST_S)
