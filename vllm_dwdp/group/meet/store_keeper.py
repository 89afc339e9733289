# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Keeps a store open in its host's process for as long as other ranks need it."""

import atexit
import contextlib
import threading
import time
from collections.abc import Iterable

from vllm_dwdp.group.errors import SecretMismatch, StoreLost
from vllm_dwdp.group.meet.failure_watch import place_key, rank_key
from vllm_dwdp.group.meet.process_identity import ProcessIdentity
from vllm_dwdp.group.meet.progress import GroupProgress, Place
from vllm_dwdp.group.meet.store import POLL_S, RendezvousStore

LINGER_S = 5.0


class StoreKeeper:
    """Closes the store when all guests have left it or ended, or when no rank gets further.

    guests: the other ranks that meet at this store.
    """

    def __init__(
        self,
        store: RendezvousStore,
        identity: ProcessIdentity,
        *,
        guests: Iterable[int],
        timeout_s: float,
    ) -> None:
        self._store = store
        self._identity = identity
        self._staying = set(guests)
        self._timeout_s = timeout_s
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="dwdp-keeper", daemon=True)

    def keep_while_others_read(self) -> None:
        """After a failure, wait until every rank that came has read it, but at most 5 seconds."""
        end = time.monotonic() + LINGER_S
        with contextlib.suppress(StoreLost):
            while self._someone_stays(counts_absent=False) and time.monotonic() < end:
                time.sleep(POLL_S)
        self._store.close()

    def keep_in_background(self) -> None:
        """After success, keep the store open in a thread.

        When the process exits, it waits for the other ranks 5 seconds at most.
        """
        self._thread.start()
        atexit.register(self._leave)

    def _keep(self) -> None:
        progress = GroupProgress(self._staying, timeout_s=self._timeout_s)
        with contextlib.suppress(StoreLost):
            while self._someone_stays(counts_absent=True) and not self._is_quiet(progress):
                if self._is_stopped.wait(POLL_S):
                    break
        self._store.close()
        atexit.unregister(self._leave)

    def _leave(self) -> None:
        self._thread.join(LINGER_S)
        self._is_stopped.set()
        self._thread.join(LINGER_S)

    def _is_quiet(self, progress: GroupProgress) -> bool:
        """Whether no rank that still needs the store got further for `timeout_s`."""
        for rank in progress.job_ranks:
            with contextlib.suppress(SecretMismatch):
                posted = self._store.get(place_key(rank))
                progress.hear(rank, Place.from_bytes(posted) if posted else None)
        return progress.is_quiet

    def _someone_stays(self, *, counts_absent: bool) -> bool:
        """Whether a rank may still need the store.

        A rank whose entry isn't signed with the job's secret counts as one that does.
        """
        for rank in tuple(self._staying):
            with contextlib.suppress(SecretMismatch):
                if not self._stays(rank, counts_absent):
                    self._staying.remove(rank)
        return bool(self._staying)

    def _stays(self, rank: int, counts_absent: bool) -> bool:
        if self._store.get(rank_key("left", rank)) is not None:
            return False
        hello = self._store.get(rank_key("hello", rank))
        if hello is None:
            return counts_absent
        return not ProcessIdentity.from_bytes(hello).has_ended(self._identity)
