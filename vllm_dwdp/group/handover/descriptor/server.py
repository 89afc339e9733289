# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Hands this rank's sealed memory files to its peers, on request, one parcel at a time.

One thread serves all connections. A slow or hostile peer can't hold it up: packets arrive whole or
not at all, sends don't block, and connections that have sent no valid request make room for new
ones.
"""

import errno
import logging
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable

from vllm_dwdp.group.errors import ExchangeRefused
from vllm_dwdp.group.handover.descriptor import wire
from vllm_dwdp.group.handover.descriptor.private_directory import SOCKET_NAME, PrivateDirectory

logger = logging.getLogger("vllm.dwdp")
MAX_CONNECTIONS = 256
BACKLOG = 1024
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
DescriptorSource = Callable[[int], list[tuple[int, int]]]
"""Parcel -> (descriptor, bytes) of each block; the server closes the descriptors."""


class DescriptorServer:
    """Listens from construction to `close`. Peers need its `path` and its `token` to connect.

    source: gives the blocks of a parcel; called in the server's thread.
    """

    def __init__(self, source: DescriptorSource, *, num_parcels: int) -> None:
        self._source = source
        self._num_parcels = num_parcels
        self.token = secrets.token_bytes(wire.TOKEN_BYTES)
        self._directory = PrivateDirectory()
        self.path = str(self._directory.path / SOCKET_NAME)
        self._listener = self._directory.listen(backlog=BACKLOG)
        self._listener.setblocking(False)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._is_proven: dict[socket.socket, bool] = {}
        self._thread = threading.Thread(target=self._serve, name="dwdp-descriptors", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving, and remove the socket and its directory. May be called twice."""
        self._wake_writer.close()
        self._thread.join()
        self.remove_directory()

    def remove_directory(self) -> None:
        """Remove the socket's path once all peers are connected, so that a kill leaves no file."""
        self._directory.remove()

    def _serve(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        while self._serve_ready():
            pass
        self._selector.close()
        for opened in (self._listener, self._wake_reader, *self._is_proven):
            opened.close()

    def _serve_ready(self) -> bool:
        ready = [key for key, _ in self._selector.select()]
        if any(key.fileobj is self._wake_reader for key in ready):
            return False
        # Requests come before new connections, which could displace a peer whose valid request
        # hasn't been read yet.
        for key in sorted(ready, key=lambda key: key.fileobj is self._listener):
            key.data(key.fileobj)
        return True

    def _accept(self, listener: socket.socket) -> None:
        try:
            peer, _ = listener.accept()
        except OSError as error:
            if error.errno in OUT_OF_DESCRIPTORS and not self._make_room():
                time.sleep(0.01)
            return
        peer.setblocking(False)
        if reason := wire.reason_not_trusted(peer, os.geteuid()):
            self._refuse(peer, reason)
            peer.close()
            return
        if len(self._is_proven) >= MAX_CONNECTIONS:
            self._make_room()
        self._is_proven[peer] = False
        self._selector.register(peer, selectors.EVENT_READ, self._answer)

    def _make_room(self) -> bool:
        """Drop the oldest connection that never sent a valid request."""
        peer = next((peer for peer, is_proven in self._is_proven.items() if not is_proven), None)
        if peer is not None:
            self._drop(peer)
        return peer is not None

    def _answer(self, peer: socket.socket) -> None:
        try:
            packet, _, flags, _ = peer.recvmsg(wire.MAX_PACKET_BYTES)
            if not packet:
                self._drop(peer)
                return
            if flags & socket.MSG_CTRUNC:
                raise ExchangeRefused("expected a request alone, got descriptors beside it")
            parcel = wire.parse_request(packet, token=self.token, num_parcels=self._num_parcels)
            self._is_proven[peer] = True
            self._send_parcel(peer, [] if parcel is None else self._source(parcel))
        except Exception as error:
            self._refuse(peer, str(error) or type(error).__name__)
            self._drop(peer)

    def _send_parcel(self, peer: socket.socket, blocks: list[tuple[int, int]]) -> None:
        try:
            for start in range(0, max(1, len(blocks)), wire.MAX_DESCRIPTORS):
                part = blocks[start : start + wire.MAX_DESCRIPTORS]
                num_left = len(blocks) - start - len(part)
                packet = wire.pack_response(num_left, [size for _, size in part])
                socket.send_fds(peer, [packet], [fd for fd, _ in part])
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            peer.send(wire.pack_busy("too many descriptors in flight; raise ulimit -n"))
        finally:
            for fd, _ in blocks:
                os.close(fd)

    def _refuse(self, peer: socket.socket, reason: str) -> None:
        logger.warning("dwdp refused a request for expert memory: %s", reason)
        try:
            peer.send(wire.pack_refusal(reason))
        except OSError as error:
            logger.debug("dwdp could not tell a peer why it was refused: %s", error)

    def _drop(self, peer: socket.socket) -> None:
        del self._is_proven[peer]
        self._selector.unregister(peer)
        peer.close()
