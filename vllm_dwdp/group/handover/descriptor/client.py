# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Asks one peer for the descriptors of its memory files, one parcel at a time."""

import os
import resource
import select
import socket
import time
from array import array
from collections.abc import Callable, Sequence
from types import TracebackType

from vllm_dwdp.group.errors import ExchangeRefused, GroupError, PeerBusy
from vllm_dwdp.group.handover.descriptor import wire
from vllm_dwdp.group.handover.descriptor.private_directory import short_name

RETRY_S = 0.02
ON_WAIT_S = 0.1
CONTROL_BYTES = socket.CMSG_SPACE(wire.MAX_DESCRIPTORS * array("i").itemsize)


class DescriptorClient:
    """One connection to a peer's DescriptorServer. Every error names the peer and the reason.

    After an error the connection is closed. subject: the name that errors give to the memory that
    is handed over. on_wait: called again and again while the client waits, so that this rank isn't
    mistaken for one that hangs.
    """

    def __init__(
        self,
        path: str,
        token: bytes,
        *,
        peer_rank: int,
        timeout_s: float,
        subject: str = "experts",
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._token = token
        self._peer_rank = peer_rank
        self._subject = subject
        self._timeout_s = timeout_s
        self._on_wait = on_wait
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(timeout_s)
        try:
            self._connect(path)
            self._ask(wire.pack_hello(token), expected_sizes=[])
        except (OSError, GroupError) as error:
            self._socket.close()
            raise self._error(error) from error

    def __enter__(self) -> "DescriptorClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def take_handles(self, parcel: int, expected_sizes: Sequence[int]) -> list[int]:
        """Take the descriptors of a parcel's blocks; the caller owns them.

        expected_sizes: the bytes of each block. Raises ExchangeRefused when the peer refuses or
        sends blocks of other sizes, or when the kernel drops descriptors; it then closes every
        descriptor that has arrived.
        """
        request = wire.pack_request(parcel, self._token)
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                return self._ask(request, expected_sizes)
            except PeerBusy as busy:
                if time.monotonic() > deadline:
                    raise self._error(busy) from busy
                self._on_wait()
                time.sleep(RETRY_S)
            except (OSError, ExchangeRefused) as error:
                self._socket.close()
                raise self._error(error) from error

    def _connect(self, path: str) -> None:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                with short_name(path) as name:
                    self._socket.connect(name)
                break
            except BlockingIOError:  # the peer's backlog is full
                if time.monotonic() > deadline:
                    raise
                self._on_wait()
                time.sleep(RETRY_S)
        if reason := wire.reason_not_trusted(self._socket, os.geteuid()):
            raise ExchangeRefused(reason)

    def _ask(self, request: bytes, expected_sizes: Sequence[int]) -> list[int]:
        fds: list[int] = []
        try:
            self._socket.send(request)
            self._receive_all(fds, list(expected_sizes))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def _receive_all(self, fds: list[int], expected_sizes: list[int]) -> None:
        while True:
            num_before = len(fds)
            response = self._receive(fds)
            if len(fds) - num_before != len(response.sizes):
                raise ExchangeRefused(
                    f"expected {len(response.sizes)} descriptors in a packet, got "
                    f"{len(fds) - num_before}"
                )
            _check_sizes(response, expected_sizes[num_before:])
            if response.num_left == 0:
                return

    def _await_packet(self) -> None:
        """Wait until a packet has come. Raises TimeoutError if none comes in time."""
        deadline = time.monotonic() + self._timeout_s
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        while not poller.poll(min(ON_WAIT_S, self._timeout_s) * 1000):
            self._on_wait()
            if time.monotonic() > deadline:
                raise TimeoutError

    def _receive(self, fds: list[int]) -> wire.Response:
        self._await_packet()
        # socket.recv_fds would drop the flag that keeps descriptors from child processes.
        packet, control, flags, _ = self._socket.recvmsg(
            wire.MAX_PACKET_BYTES, CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        received = [fd for message in control for fd in _descriptors(message)]
        fds += received
        if flags & socket.MSG_TRUNC:
            raise ExchangeRefused(f"expected a packet of at most {wire.MAX_PACKET_BYTES} bytes")
        response = wire.parse_response(packet)
        if flags & socket.MSG_CTRUNC:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            raise ExchangeRefused(
                f"expected {len(response.sizes)} descriptors, got {len(received)} and the kernel "
                f"dropped the rest; raise the descriptor limit (ulimit -n, now {limit})"
            )
        return response

    def _error(self, cause: Exception) -> ExchangeRefused:
        what = f"no answer within {self._timeout_s:g} s" if _is_timeout(cause) else str(cause)
        return ExchangeRefused(f"taking the {self._subject} of dwdp rank {self._peer_rank}: {what}")


def _check_sizes(response: wire.Response, expected: list[int]) -> None:
    """Check a packet's sizes, and that it announces as many more as are expected after it.

    A packet without descriptors that announces more is refused: a peer could send it forever.
    """
    sizes, num_left = list(response.sizes), response.num_left
    is_stuck = not sizes and num_left > 0
    if is_stuck or len(sizes) + num_left != len(expected) or sizes != expected[: len(sizes)]:
        raise ExchangeRefused(
            f"expected blocks of {expected} bytes, got {sizes} and {num_left} to come"
        )


def _descriptors(message: tuple[int, int, bytes]) -> Sequence[int]:
    level, kind, data = message
    if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
        return ()
    fds = array("i")
    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds


def _is_timeout(cause: Exception) -> bool:
    return isinstance(cause, TimeoutError | BlockingIOError)
