# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The key-value store of a start-up: torch's TCPStore on one address, with a limit on each call.

* One rank hosts the store, which listens on the endpoint's address alone.
* Every call ends within its time limit. If the host is gone, stopped or another program, the call
  raises an error that names the host.
* Entries are signed if the job has a secret, see secret.py.
* If ranks can read a note that the host leaves for them, they need no fixed port: the host takes
  any free port and posts it.
"""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

from vllm_dwdp.group.errors import RendezvousRefused, StoreLost
from vllm_dwdp.group.meet.bounded_thread import BoundedThread
from vllm_dwdp.group.meet.secret import Signer

POLL_S = 0.05
DESCRIPTION_KEY = "vllm-dwdp rendezvous 3"
START_ID_KEY = "start id"
MIN_PATIENCE_S = 2.0
MAX_REACH_S = 30.0
CLOSE_S = 1.0


class Endpoint(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class PortNotice(Protocol):
    """A place where rank 0 posts the port that it took."""

    def post(self, port: int) -> None: ...

    def read(self) -> int:
        """The port; 0 until one is posted."""
        ...


class NoNotice:
    """The notice for ranks that were all told the port: it posts nothing, and never has a port."""

    def post(self, port: int) -> None:
        pass

    def read(self) -> int:
        return 0


class RendezvousStore:
    """One process's end of the store.

    timeout_s: the longest wait for one answer of the host. notice: if the endpoint's port is 0, the
    host takes a free port, and this tells it to the others. secret: see secret.py. host_rank: the
    rank that hosts the store. Calls raise StoreLost, and SecretMismatch for an entry that isn't
    signed with the secret.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout_s: float,
        notice: PortNotice | None = None,
        secret: bytes | None = None,
        host_rank: int = 0,
    ) -> None:
        self.endpoint = endpoint
        self._signer = Signer(secret)
        self._notice = notice or NoNotice()
        self._timeout_s = timeout_s
        self._thread = BoundedThread("dwdp-store")
        self._store: Any = None
        self._host_name = self._host_title = f"dwdp rank {host_rank}"
        self._loss: StoreLost | None = None

    def host(self, description: bytes) -> None:
        """Listen. The description tells ranks that come which dwdp job this rendezvous belongs to.

        Raises RendezvousRefused when the address is taken.
        """
        with self._listen() as listener:
            self.endpoint = self.endpoint._replace(port=listener.getsockname()[1])
            self._store = self._call(lambda: _host(self.endpoint, listener))
        start_id = secrets.token_hex(16).encode()
        self.set(START_ID_KEY, start_id)
        self._signer = self._signer.of_start(start_id)
        self.set(DESCRIPTION_KEY, description)
        self._notice.post(self.endpoint.port)

    def reach(self) -> bytes:
        """Connect to the host; returns its description.

        Raises RendezvousRefused if something other than a dwdp rendezvous listens there.
        """
        self._wait_for_listener()
        patience_s = max(MIN_PATIENCE_S, min(MAX_REACH_S, self._timeout_s))
        try:
            self._store = self._thread.call(
                lambda: _reach(self.endpoint, patience_s), patience_s + CLOSE_S
            )
        except Exception as error:
            raise RendezvousRefused(
                f"expected a dwdp rendezvous at {self.endpoint}, got something else "
                f"({_first_line(error)}); free the port, or set another with dwdp.rendezvous."
            ) from error
        self._signer = self._signer.of_start(self._get(START_ID_KEY))
        return self._get(DESCRIPTION_KEY)

    def name_host(self, pid: int) -> None:
        """Make later errors name the process that hosts the store."""
        self._host_name = f"{self._host_title} (process {pid})"

    def set(self, key: str, value: bytes, *, patience_s: float | None = None) -> None:
        entry = self._signer.sign(key, value)
        self._call(lambda: self._store.set(key, entry), patience_s)

    def get(self, key: str) -> bytes | None:
        entry = self.get_unsigned(key)
        return None if entry is None else self._signer.open(key, entry)

    def set_unsigned(self, key: str, value: bytes) -> None:
        """Set a key that a rank without this job's secret may set, too: to say that it came."""
        self._call(lambda: self._store.set(key, value))

    def get_unsigned(self, key: str) -> bytes | None:
        """An entry as it is, whoever has set it."""
        return self._call(lambda: _get(self._store, key))  # type: ignore[no-any-return]

    def set_once(self, key: str, value: str, *, patience_s: float | None = None) -> str:
        """Set the key unless it has a value; returns its value, the same for every rank."""
        entry = self._signer.sign(key, value.encode()).decode()
        posted = self._call(lambda: self._store.compare_set(key, "", entry), patience_s)
        return self._signer.open(key, bytes(posted)).decode()

    def close(self) -> None:
        """Leave the store. If this process hosts it, it stops listening."""
        self._store = None
        self._thread.close(CLOSE_S)

    def _get(self, key: str) -> bytes:
        """The value of a key that rank 0 has set, or is about to set."""
        return self._signer.open(key, bytes(self._call(lambda: self._store.get(key))))

    def _call(self, function: Callable[[], Any], patience_s: float | None = None) -> Any:
        if self._loss is not None:
            raise self._loss
        limit_s = patience_s or max(MIN_PATIENCE_S, self._timeout_s)
        try:
            return self._thread.call(function, limit_s)
        except TimeoutError as error:
            self._loss = self._lost(f"did not answer within {limit_s:g} s")
            raise self._loss from error
        except Exception as error:
            self._loss = self._lost("ended during start-up")
            raise self._loss from error

    def _lost(self, what: str) -> StoreLost:
        return StoreLost(f"{self._host_name}, which hosts the rendezvous, {what}.")

    def _listen(self) -> socket.socket:
        listener = _socket(self.endpoint)
        try:
            listener.bind(self.endpoint)
            listener.listen(1024)
        except OSError as error:
            listener.close()
            raise RendezvousRefused(
                f"can't host the rendezvous at {self.endpoint}: {error}; free the "
                "port, or set another with dwdp.rendezvous."
            ) from error
        return listener

    def _wait_for_listener(self) -> None:
        """Wait until the host listens. torch would wait, too, but its error wouldn't name it."""
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            if port := self._notice.read():
                self.endpoint = self.endpoint._replace(port=port)
            if self.endpoint.port and is_listened_to(self.endpoint):
                return
            time.sleep(POLL_S)
        if not self.endpoint.port:
            raise StoreLost(
                f"{self._host_title} did not open the rendezvous within {self._timeout_s:g} s; "
                "look at its log, or raise dwdp.timeout_s."
            )
        raise StoreLost(
            f"{self._host_title} did not open the rendezvous at {self.endpoint} within "
            f"{self._timeout_s:g} s; start it with the same dwdp.rendezvous."
        )


def is_listened_to(endpoint: Endpoint) -> bool:
    """Whether something accepts connections there."""
    with _socket(endpoint) as probe, contextlib.suppress(OSError):
        probe.settimeout(1)
        probe.connect(endpoint)
        # TCP can connect a socket to itself when nothing listens on a local port.
        return bool(probe.getsockname() != probe.getpeername())
    return False


def _socket(endpoint: Endpoint) -> socket.socket:
    """A socket whose address can be bound again at once after it has closed."""
    made = socket.socket(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def _host(endpoint: Endpoint, listener: socket.socket) -> Any:
    from torch.distributed import TCPStore

    return TCPStore(
        endpoint.host,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
        use_libuv=True,
    )


def _reach(endpoint: Endpoint, timeout_s: float) -> Any:
    from torch.distributed import TCPStore

    timeout = timedelta(seconds=timeout_s)
    store = TCPStore(*endpoint, is_master=False, wait_for_workers=False, timeout=timeout)
    store.wait([DESCRIPTION_KEY])
    return store


def _get(store: Any, key: str) -> bytes | None:
    return bytes(store.get(key)) if store.check([key]) else None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
