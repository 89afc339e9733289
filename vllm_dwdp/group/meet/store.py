# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The keys that ranks share at start-up: torch's TCPStore on one address, bounded in time.

* Rank 0 of the job hosts; the store listens on the endpoint's address alone.
* No call outlasts its patience: a lost, stopped or foreign host raises, and names itself.
* Ranks that can tell each other a number beforehand need no port that all of them know: rank 0
  takes any free one and posts it.
"""

import contextlib
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

from vllm_dwdp.group.errors import RendezvousRefused, StoreLost
from vllm_dwdp.group.meet.bounded_thread import BoundedThread

POLL_S = 0.05
DESCRIPTION_KEY = "vllm-dwdp rendezvous 2"
MIN_PATIENCE_S = 2.0
MAX_REACH_S = 30.0
CLOSE_S = 1.0


class Endpoint(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class PortNotice(Protocol):
    """Where rank 0 says which port it took."""

    def post(self, port: int) -> None: ...

    def read(self) -> int:
        """The port, 0 while none was posted."""
        ...


class NoNotice:
    """Every rank was told the port: nothing is posted, and nothing looked for."""

    def post(self, port: int) -> None:
        pass

    def read(self) -> int:
        return 0


class RendezvousStore:
    """One process's end of the store. `timeout_s` bounds each answer of its host.

    With port 0 rank 0 takes a free port, and `notice` tells it to the others.
    """

    def __init__(
        self, endpoint: Endpoint, *, timeout_s: float, notice: PortNotice | None = None
    ) -> None:
        self.endpoint = endpoint
        self._notice = notice or NoNotice()
        self._timeout_s = timeout_s
        self._thread = BoundedThread("dwdp-store")
        self._store: Any = None
        self._host_name = "dwdp rank 0"
        self._loss: StoreLost | None = None

    def host(self, description: bytes) -> None:
        """Listen; the description tells those who come that this is a dwdp rendezvous, and whose.

        Raises RendezvousRefused when the address is taken.
        """
        with self._listen() as listener:
            self.endpoint = self.endpoint._replace(port=listener.getsockname()[1])
            self._store = self._call(lambda: _host(self.endpoint, listener))
        self.set(DESCRIPTION_KEY, description)
        self._notice.post(self.endpoint.port)

    def reach(self) -> bytes:
        """The host's description. Raises RendezvousRefused for anything but a dwdp rendezvous."""
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
        return bytes(self._call(lambda: self._store.get(DESCRIPTION_KEY)))

    def name_host(self, pid: int) -> None:
        """Make later errors name the process that hosts the store."""
        self._host_name = f"dwdp rank 0 (process {pid})"

    def set(self, key: str, value: bytes, *, patience_s: float | None = None) -> None:
        self._call(lambda: self._store.set(key, value), patience_s)

    def get(self, key: str) -> bytes | None:
        return self._call(lambda: _get(self._store, key))  # type: ignore[no-any-return]

    def set_once(self, key: str, value: str, *, patience_s: float | None = None) -> str:
        """Set the key unless it is set; its value then. The same for every rank."""
        posted = self._call(lambda: self._store.compare_set(key, "", value), patience_s)
        return str(posted.decode())

    def close(self) -> None:
        """Let go of the store; its host stops listening."""
        self._store = None
        self._thread.close(CLOSE_S)

    def _call(self, function: Callable[[], Any], patience_s: float | None = None) -> Any:
        if self._loss is not None:
            raise self._loss
        try:
            return self._thread.call(function, patience_s or max(MIN_PATIENCE_S, self._timeout_s))
        except TimeoutError as error:
            self._loss = self._lost(f"did not answer within {self._timeout_s:g} s")
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
        """Wait for rank 0 to listen; torch's own retry is silent about what it waits for."""
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            if port := self._notice.read():
                self.endpoint = self.endpoint._replace(port=port)
            if self.endpoint.port and is_listened_to(self.endpoint):
                return
            time.sleep(POLL_S)
        if not self.endpoint.port:
            raise StoreLost(
                f"dwdp rank 0 did not open the rendezvous within {self._timeout_s:g} s; look at "
                "its log, or raise dwdp.timeout_s."
            )
        raise StoreLost(
            f"dwdp rank 0 did not open the rendezvous at {self.endpoint} within "
            f"{self._timeout_s:g} s; start it with the same dwdp.rendezvous."
        )


def is_listened_to(endpoint: Endpoint) -> bool:
    """Whether something accepts connections there."""
    with _socket(endpoint) as probe, contextlib.suppress(OSError):
        probe.settimeout(1)
        probe.connect(endpoint)
        # On a free local port a connection may meet itself.
        return bool(probe.getsockname() != probe.getpeername())
    return False


def _socket(endpoint: Endpoint) -> socket.socket:
    """It leaves the address to whoever comes next, also for the minute after it closed."""
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
