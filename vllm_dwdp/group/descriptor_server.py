# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Hands this rank's sealed memory files to its peers, on request, one layer at a time.

One thread serves all connections; no peer, however slow or hostile, can hold it up: packets are
whole or absent, sends don't block, and unproven connections make room for new ones.
"""

import logging
import os
import secrets
import selectors
import shutil
import socket
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from vllm_dwdp.group import wire
from vllm_dwdp.group.errors import ExchangeRefused

logger = logging.getLogger("vllm.dwdp")
MAX_CONNECTIONS = 256
MAX_SOCKET_PATH = 107
DescriptorSource = Callable[[int], list[tuple[int, int]]]
"""Layer index -> (descriptor, bytes) of each block; the server closes the descriptors."""


class DescriptorServer:
    """Listens from construction to `close`; `path` and `token` go to the peers."""

    def __init__(self, source: DescriptorSource, *, num_layers: int) -> None:
        self._source = source
        self._num_layers = num_layers
        self.token = secrets.token_bytes(wire.TOKEN_BYTES)
        self._directory = _private_directory()
        self._remove = weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        self.path = str(self._directory / "descriptors")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._connections: dict[socket.socket, bool] = {}
        self._thread = threading.Thread(target=self._serve, name="dwdp-descriptors", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; removes socket and directory. May be called twice."""
        self._wake_writer.close()
        self._thread.join()
        self._remove()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            while self._serve_ready(selector):
                pass
        for opened in (self._listener, self._wake_reader, *self._connections):
            opened.close()

    def _serve_ready(self, selector: selectors.BaseSelector) -> bool:
        for key, _ in selector.select():
            if key.fileobj is self._wake_reader:
                return False
            if key.fileobj is self._listener:
                self._accept(selector)
            elif key.fileobj in self._connections:
                self._answer(key.fileobj, selector)  # type: ignore[arg-type]
        return True

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        peer.setblocking(False)
        if reason := wire.reason_not_trusted(peer, os.getuid()):
            self._refuse(peer, reason)
            peer.close()
            return
        self._make_room(selector)
        self._connections[peer] = False
        selector.register(peer, selectors.EVENT_READ)

    def _make_room(self, selector: selectors.BaseSelector) -> None:
        """Connections that never sent a valid request go first, the oldest before others."""
        if len(self._connections) < MAX_CONNECTIONS:
            return
        unproven = (peer for peer, is_proven in self._connections.items() if not is_proven)
        self._drop(next(unproven, next(iter(self._connections))), selector)

    def _answer(self, peer: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            packet = peer.recv(wire.MAX_PACKET_BYTES)
            if not packet:
                self._drop(peer, selector)
                return
            layer_idx = wire.parse_request(packet, token=self.token, num_layers=self._num_layers)
            self._send_layer(peer, layer_idx)
            self._connections[peer] = True
        except (ExchangeRefused, OSError) as error:
            self._refuse(peer, str(error))
            self._drop(peer, selector)

    def _send_layer(self, peer: socket.socket, layer_idx: int) -> None:
        blocks = self._source(layer_idx)
        try:
            for start in range(0, max(1, len(blocks)), wire.MAX_DESCRIPTORS):
                part = blocks[start : start + wire.MAX_DESCRIPTORS]
                num_left = len(blocks) - start - len(part)
                packet = wire.pack_response(num_left, tuple(size for _, size in part))
                socket.send_fds(peer, [packet], [fd for fd, _ in part])
        finally:
            for fd, _ in blocks:
                os.close(fd)

    def _refuse(self, peer: socket.socket, reason: str) -> None:
        logger.warning("dwdp refused a request for expert memory: %s", reason)
        try:
            peer.send(wire.pack_refusal(reason))
        except OSError as error:
            logger.debug("dwdp could not tell a peer why it was refused: %s", error)

    def _drop(self, peer: socket.socket, selector: selectors.BaseSelector) -> None:
        del self._connections[peer]
        selector.unregister(peer)
        peer.close()


def _private_directory() -> Path:
    """A new directory, mode 0700, whose path leaves room for a socket name."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    is_usable = os.access(runtime, os.W_OK) and len(runtime) < MAX_SOCKET_PATH - 40
    return Path(tempfile.mkdtemp(prefix="vllm-dwdp-", dir=runtime if is_usable else "/tmp"))
