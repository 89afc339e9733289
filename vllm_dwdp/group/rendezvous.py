# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Where the ranks of a group meet at start-up: keys in torch's TCPStore on loopback.

* The first rank of the job hosts the store; it is used during start-up only.
* Each rank posts who it is, so that a death is noticed at once, not at the time-out.
* The first cause of failure that is posted wins: every rank ends with the same sentence.
"""

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from vllm_dwdp.group.errors import GroupError, RankFailed
from vllm_dwdp.group.process_identity import ProcessIdentity

POLL_S = 0.05
LINGER_S = 5.0
MAGIC = b"vllm-dwdp rendezvous 1"


class Endpoint(NamedTuple):
    host: str
    port: int


class Rendezvous:
    """One rank's end of the store. `timeout_s` covers all of start-up, from `open` on."""

    def __init__(
        self, *, endpoint: Endpoint, job_rank: int, job_size: int, dwdp_size: int, timeout_s: float
    ) -> None:
        self._endpoint = endpoint
        self._job_rank = job_rank
        self._job_size = job_size
        self._dwdp_size = dwdp_size
        self._timeout_s = timeout_s
        self._first_rank = job_rank - job_rank % dwdp_size
        self._identity = ProcessIdentity.own()
        self._peers: dict[int, ProcessIdentity] = {}
        self._store: Any = None
        self._deadline = 0.0

    @property
    def dwdp_rank(self) -> int:
        return self._job_rank - self._first_rank

    @property
    def dwdp_size(self) -> int:
        return self._dwdp_size

    def open(self) -> None:
        """Host or reach the store and post who this rank is."""
        self._deadline = time.monotonic() + self._timeout_s
        if self._dwdp_size == 1:
            return
        self._store = self._host_store() if self._job_rank == 0 else self._reach_store()
        with self._store_errors():
            job = f"{self._job_size}/{self._dwdp_size}".encode()
            agreed = self._store.compare_set("job", b"", job)
            self._store.set(self._key("hello", self._job_rank), self._identity.to_bytes())
        if agreed != job:
            raise GroupError(
                f"rank {self._job_rank} has job size/dwdp_size {job.decode()}, the job at "
                f"{self._endpoint.host}:{self._endpoint.port} has {agreed.decode()}; start every "
                "rank with the same options, and every job with its own port."
            )

    def gather(self, phase: str, payload: bytes) -> list[bytes]:
        """Post this rank's payload and wait for everyone's, in rank order.

        Raises RankFailed, with the same sentence on every rank, when one fails, dies, can't be
        reached, or doesn't arrive in time.
        """
        if self._dwdp_size == 1:
            return [payload]
        with self._store_errors():
            self._store.set(self._key(phase, self._job_rank), payload)
            return [self._wait_for(phase, rank) for rank in self._ranks()]

    def fail(self, cause: str) -> str:
        """Post a failure of this rank; returns the sentence that ends every rank. Never raises."""
        if cause.startswith("dwdp rank"):
            return self._post_failure(cause)
        return self._post_failure(f"dwdp rank {self._job_rank} failed: {cause}")

    def close(self) -> None:
        """Let go of the store. Its host keeps it until the others have read why it ended."""
        if self._store is not None and self._job_rank == 0:
            self._linger()
        self._store = None

    def _host_store(self) -> Any:
        from torch.distributed import TCPStore

        host, port = self._endpoint
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            raise GroupError(
                f"dwdp rank 0 can't host the rendezvous at {host}:{port}: {error}; free the "
                "port or set another with additional_config dwdp.rendezvous."
            ) from error
        listener.listen()
        store = TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
            use_libuv=True,
        )
        store.set("magic", MAGIC)
        return store

    def _reach_store(self) -> Any:
        from datetime import timedelta

        from torch.distributed import TCPStore

        host, port = self._endpoint
        self._wait_for_listener()
        left = timedelta(seconds=max(1.0, min(30.0, self._deadline - time.monotonic())))
        try:
            store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=left)
            magic = store.get("magic")
        except Exception as error:
            raise GroupError(
                f"dwdp rank {self._job_rank} found something else than a dwdp rendezvous at "
                f"{host}:{port} ({error}); set a free port with dwdp.rendezvous."
            ) from error
        if magic != MAGIC:
            raise GroupError(
                f"{host}:{port} speaks {magic!r}, expected {MAGIC!r}; use one version."
            )
        return store

    def _wait_for_listener(self) -> None:
        """Wait for rank 0 to listen; torch's own retry is silent about what it waits for."""
        while time.monotonic() < self._deadline:
            with contextlib.suppress(OSError), socket.create_connection(self._endpoint, timeout=1):
                return
            time.sleep(POLL_S)
        raise RankFailed(
            f"dwdp rank 0 did not open the rendezvous at {self._endpoint.host}:"
            f"{self._endpoint.port} within {self._timeout_s:g} s."
        )

    def _wait_for(self, phase: str, rank: int) -> bytes:
        key = self._key(phase, rank)
        while not self._store.check([key]):
            self._check_failure()
            self._check_peers()
            if time.monotonic() > self._deadline:
                self._raise_failure(
                    f"dwdp rank {rank} did not reach '{phase}' within {self._timeout_s:g} s."
                )
            time.sleep(POLL_S)
        return bytes(self._store.get(key))

    def _check_failure(self) -> None:
        if self._store.check([self._failure_key]):
            sentence = self._store.get(self._failure_key).decode()
            self._acknowledge()
            raise RankFailed(sentence)

    def _check_peers(self) -> None:
        for rank in self._ranks():
            peer = self._peer(rank)
            if peer is None:
                continue
            if reason := self._identity.reason_not_reachable(peer):
                self._raise_failure(f"dwdp rank {rank} can't share its experts: {reason}.")
            if not peer.is_alive():
                self._raise_failure(f"dwdp rank {rank} (process {peer.pid}) ended during start-up.")

    def _peer(self, rank: int) -> ProcessIdentity | None:
        if rank not in self._peers and self._store.check([self._key("hello", rank)]):
            data = self._store.get(self._key("hello", rank))
            self._peers[rank] = ProcessIdentity.from_bytes(data)
        return self._peers.get(rank)

    def _raise_failure(self, sentence: str) -> None:
        raise RankFailed(self._post_failure(sentence))

    def _post_failure(self, sentence: str) -> str:
        if self._store is None:
            return sentence
        with contextlib.suppress(Exception):
            posted = self._store.compare_set(self._failure_key, "", sentence)
            self._acknowledge()
            return str(posted.decode())
        return sentence

    def _acknowledge(self) -> None:
        self._store.set(self._key("read", self._job_rank), b"1")

    def _linger(self) -> None:
        if not self._store.check([self._failure_key]):
            return
        end = time.monotonic() + LINGER_S
        while time.monotonic() < end and not all(map(self._has_read, self._ranks())):
            time.sleep(POLL_S)

    def _has_read(self, rank: int) -> bool:
        peer = self._peer(rank)
        return self._store.check([self._key("read", rank)]) or peer is None or not peer.is_alive()

    @contextlib.contextmanager
    def _store_errors(self) -> Iterator[None]:
        """A store that goes away means that its host did."""
        try:
            yield
        except GroupError:
            raise
        except Exception as error:
            raise RankFailed(
                "dwdp rank 0, which hosts the rendezvous, ended during start-up "
                f"(seen by rank {self._job_rank}: {error})."
            ) from error

    def _ranks(self) -> range:
        return range(self._first_rank, self._first_rank + self._dwdp_size)

    def _key(self, phase: str, rank: int) -> str:
        return f"{phase}/{rank}"

    @property
    def _failure_key(self) -> str:
        return f"failure/{self._first_rank}"
