# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Asks one peer for its memory files, a layer at a time."""

import os
import socket
from array import array
from collections.abc import Sequence
from types import TracebackType

from vllm_dwdp.group import wire
from vllm_dwdp.group.errors import ExchangeRefused

CONTROL_BYTES = socket.CMSG_SPACE(wire.MAX_DESCRIPTORS * array("i").itemsize)


class DescriptorClient:
    """One connection to a peer's DescriptorServer. Every error names the peer and the reason."""

    def __init__(self, path: str, token: bytes, *, peer_rank: int, timeout_s: float) -> None:
        self._token = token
        self._peer_rank = peer_rank
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(path)
            if reason := wire.reason_not_trusted(self._socket, os.getuid()):
                raise ExchangeRefused(reason)
        except (OSError, ExchangeRefused) as error:
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

    def layer(self, layer_idx: int, expected_sizes: Sequence[int]) -> list[int]:
        """Descriptors of a layer's blocks, owned by the caller.

        Raises ExchangeRefused when the peer refuses, sends other blocks than expected, or the
        kernel drops descriptors; nothing that arrived stays open then.
        """
        fds: list[int] = []
        try:
            self._socket.send(wire.pack_request(layer_idx, self._token))
            sizes = self._receive_all(fds)
            if sizes != list(expected_sizes):
                raise ExchangeRefused(f"expected blocks of {list(expected_sizes)}, got {sizes}")
        except (OSError, ExchangeRefused) as error:
            for fd in fds:
                os.close(fd)
            raise self._error(error) from error
        return fds

    def _receive_all(self, fds: list[int]) -> list[int]:
        sizes: list[int] = []
        while True:
            response = self._receive(fds)
            sizes += response.sizes
            if len(fds) != len(sizes):
                raise ExchangeRefused(f"expected {len(sizes)} descriptors, got {len(fds)}")
            if response.num_left == 0:
                return sizes

    def _receive(self, fds: list[int]) -> wire.Response:
        # Not socket.recv_fds: it drops the flags that keep descriptors from child processes.
        packet, control, flags, _ = self._socket.recvmsg(
            wire.MAX_PACKET_BYTES, CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        received = [fd for message in control for fd in _descriptors(message)]
        fds += received
        if flags & socket.MSG_CTRUNC:
            raise ExchangeRefused(
                f"the kernel dropped descriptors, {len(received)} arrived; raise the descriptor "
                "limit (ulimit -n)"
            )
        if flags & socket.MSG_TRUNC:
            raise ExchangeRefused(f"expected a packet of at most {wire.MAX_PACKET_BYTES} bytes")
        return wire.parse_response(packet)

    def _error(self, cause: Exception) -> ExchangeRefused:
        return ExchangeRefused(f"taking the experts of dwdp rank {self._peer_rank}: {cause}")


def _descriptors(message: tuple[int, int, bytes]) -> Sequence[int]:
    level, kind, data = message
    if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
        return ()
    fds = array("i")
    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds
