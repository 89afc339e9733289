# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The rendezvous: a key-value store through which the ranks of a group meet at start-up.

* Rank 0 of the job, or the first rank of a node, hosts the store, which is used at start-up only.
* A rank that finds the store of another job at the address leaves that job alone, and says so.
* Each rank posts its identity, and from then on watches its peers, also while it loads.
* After any failure on any rank, every rank ends with the same sentence.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from vllm_dwdp.group.errors import RankFailed, RendezvousRefused, SecretMismatch, StoreLost
from vllm_dwdp.group.meet.failure_watch import TURNED_AWAY_KEY, FailureWatch, rank_key
from vllm_dwdp.group.meet.process_identity import ProcessIdentity
from vllm_dwdp.group.meet.progress import Progress
from vllm_dwdp.group.meet.secret import reason_unprotected
from vllm_dwdp.group.meet.store import POLL_S, Endpoint, PortNotice, RendezvousStore
from vllm_dwdp.group.meet.store_keeper import StoreKeeper

LEAVE_S = 1.0


class Rendezvous:
    """One rank's place at the rendezvous.

    timeout_s: the longest time in which a rank may get no further, see `progress.py`. dwdp_size:
    the ranks of a group; a group of one rank needs no store, no socket and no thread. one_host:
    refuse ranks of the group on other hosts, or of other users, as soon as they come. job_id: an
    id that only the ranks of this job know; empty when several commands start them. notice: tells
    the port of the store to ranks that weren't told it. secret: what only the ranks of this job
    know, see secret.py; needs_secret: without one, refuse an endpoint that other hosts can reach.
    store_ranks: those that meet at this store, whole groups; all ranks of the job if not given.
    Raises ValueError for numbers that don't fit.
    """

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        job_rank: int,
        job_size: int,
        dwdp_size: int,
        timeout_s: float,
        one_host: bool = True,
        job_id: str = "",
        notice: PortNotice | None = None,
        secret: bytes | None = None,
        needs_secret: bool = True,
        store_ranks: range | None = None,
        end_rank: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        if not 0 <= job_rank < job_size or dwdp_size < 1 or job_size % dwdp_size:
            raise ValueError(
                f"expected a job of whole groups and a rank in it, got rank {job_rank} of "
                f"{job_size} with dwdp_size {dwdp_size}."
            )
        self._endpoint = endpoint
        self._job_rank = job_rank
        self._job_size = job_size
        self._dwdp_size = dwdp_size
        self._timeout_s = timeout_s
        self._one_host = one_host
        self._job_id = job_id
        self._notice = notice
        self._secret = secret
        self._needs_secret = needs_secret
        self._store_ranks = store_ranks or range(job_size)
        self._end_rank = end_rank
        self._identity = ProcessIdentity.own()
        self.progress = Progress()
        self._store: RendezvousStore | None = None
        self._watch: FailureWatch | None = None

    @property
    def job_rank(self) -> int:
        return self._job_rank

    @property
    def dwdp_rank(self) -> int:
        return self._job_rank % self._dwdp_size

    @property
    def dwdp_size(self) -> int:
        return self._dwdp_size

    @property
    def job_ranks(self) -> range:
        """The group's ranks by their numbers in the job."""
        first = self._job_rank - self.dwdp_rank
        return range(first, first + self._dwdp_size)

    def open(self) -> None:
        """Host or reach the store, and post this rank's identity.

        Raises RendezvousRefused when another program or another job has the address, or when it
        needs a secret, and RankFailed when the store's host can't be reached in time.
        """
        if self._dwdp_size == 1:
            return
        host, secret, needed = self._endpoint.host, self._secret, self._needs_secret
        if reason := reason_unprotected(host, secret=secret, needs_secret=needed):
            raise RendezvousRefused(reason)
        store = RendezvousStore(
            self._endpoint,
            timeout_s=self._timeout_s,
            notice=self._notice,
            secret=self._secret,
            host_rank=self._store_ranks.start,
        )
        try:
            if self._is_host:
                self._host(store)
            else:
                self._join(store)
            self._say_hello(store)
        except StoreLost as lost:
            store.close()
            raise RankFailed(str(lost)) from lost
        except BaseException:
            store.close()
            raise
        self._store = store
        self._watch = FailureWatch(
            store,
            self._identity,
            job_rank=self._job_rank,
            peer_ranks=self.job_ranks,
            one_host=self._one_host,
            progress=self.progress,
            timeout_s=self._timeout_s,
            end_rank=self._end_rank,
            host_rank=self._store_ranks.start,
        )

    def gather(self, phase: str, payload: bytes) -> list[bytes]:
        """Post this rank's payload, and wait for those of all ranks; returns them in rank order.

        Raises RankFailed, with the same sentence on every rank, when a rank fails, dies, can't be
        reached, or gets no further.
        """
        if self._store is None:
            return [payload]
        with self._ending_all():
            self._store.set(rank_key(phase, self._job_rank), payload)
            found = [self._wait_for(phase, rank) for rank in self.job_ranks]
        self.progress.step(f"past '{phase}'")
        return found

    def post(self, phase: str) -> None:
        """Tell peers that this rank has passed a phase. Raises RankFailed."""
        if self._store is not None:
            with self._ending_all():
                self._store.set(rank_key(phase, self._job_rank), b"1")

    def wait_for(self, phase: str, job_rank: int) -> None:
        """Wait until a peer has posted that it passed a phase. Raises RankFailed, see `gather`.

        Only for a rank that has peers.
        """
        with self._ending_all():
            self._wait_for(phase, job_rank)
        self.progress.step(f"after dwdp rank {job_rank} has passed '{phase}'")

    def check(self) -> None:
        """Raise RankFailed if this rank's watch has seen a failure. Doesn't ask the store."""
        if self._watch is not None and self._watch.sentence is not None:
            raise RankFailed(self._watch.sentence)

    def post_failure(self, sentence: str) -> str:
        """End every rank with this sentence, or with one that was posted before. Never raises."""
        return sentence if self._watch is None else self._watch.post_failure(sentence)

    def close(self) -> None:
        """Leave the store; its host keeps it open while peers need it. May be called twice."""
        store, watch = self._store, self._watch
        if store is None or watch is None:
            return
        watch.stop()
        self._store = self._watch = None
        with contextlib.suppress(StoreLost):
            store.set(rank_key("left", self._job_rank), b"1", patience_s=LEAVE_S)
        if not self._is_host:
            store.close()
            return
        keeper = StoreKeeper(
            store, self._identity, guests=self._store_ranks[1:], timeout_s=self._timeout_s
        )
        if watch.sentence is None:
            keeper.keep_in_background()
        else:
            keeper.keep_while_others_read()

    @property
    def _is_host(self) -> bool:
        return self._job_rank == self._store_ranks.start

    @property
    def _job(self) -> dict[str, int]:
        return {"job_size": self._job_size, "dwdp_size": self._dwdp_size}

    def _host(self, store: RendezvousStore) -> None:
        description = {"job": self._job, "id": self._job_id, "host": asdict(self._identity)}
        store.host(json.dumps(description).encode())
        store.name_host(self._identity.pid)

    def _join(self, store: RendezvousStore) -> None:
        """Reach the store of this rank's own job, and no other."""
        own = (
            f"process {self._identity.pid}, rank {self._job_rank} of {self._job_size} in groups of "
            f"{self._dwdp_size}"
        )
        try:
            description = json.loads(store.reach())
        except SecretMismatch:
            with contextlib.suppress(StoreLost):
                store.set_unsigned(TURNED_AWAY_KEY, f"{own}, with another secret".encode())
            raise
        host = ProcessIdentity(**description["host"])
        store.name_host(host.pid)
        if reason := self._reason_not_ours(description, host):
            store.set_unsigned(TURNED_AWAY_KEY, own.encode())
            raise RendezvousRefused(
                f"expected rank {self._store_ranks.start} of this rank's job at {store.endpoint}, "
                f"got process {host.pid}, {reason}, or give this job a dwdp.rendezvous of its own."
            )

    def _reason_not_ours(self, description: dict[str, Any], host: ProcessIdentity) -> str | None:
        # The host may be of another group, which may be on another host.
        is_of_group = self._store_ranks.start in self.job_ranks
        must_reach = self._one_host and is_of_group
        if must_reach and (reason := self._identity.reason_not_reachable(host)):
            return f"which can't share its experts: {reason}"
        if description["job"] != self._job:
            return (
                f"of a job of {description['job']} instead of {self._job}; start every rank with "
                "the same options"
            )
        if description["id"] != self._job_id:
            return "which another command started; start all ranks with one command"
        return None

    def _say_hello(self, store: RendezvousStore) -> None:
        own = self._identity.to_bytes().decode()
        posted = store.set_once(rank_key("hello", self._job_rank), own)
        if posted != own:
            other = ProcessIdentity.from_bytes(posted.encode())
            raise RendezvousRefused(
                f"expected to be rank {self._job_rank} at {store.endpoint}, but process "
                f"{other.pid} of user {other.uid} is; give every job its own dwdp.rendezvous."
            )

    @contextlib.contextmanager
    def _ending_all(self) -> Iterator[None]:
        """Within this context, a lost store ends every rank; RankFailed is raised then."""
        try:
            yield
        except StoreLost as lost:
            raise RankFailed(self.post_failure(str(lost))) from lost

    def _wait_for(self, phase: str, rank: int) -> bytes:
        assert self._store is not None, "a rank without peers has none to wait for"
        while (payload := self._store.get(rank_key(phase, rank))) is None:
            self.check()
            self.progress.wait(f"dwdp rank {rank} to reach '{phase}'")
            time.sleep(POLL_S)
        return payload
