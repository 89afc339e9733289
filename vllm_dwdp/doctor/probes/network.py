# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Resolves this host's name, and connects to itself over loopback."""

import contextlib
import socket
from typing import Any

from vllm_dwdp.engine.setup.local_address import is_local, reserved_port

TIMEOUT_S = 5.0


def look() -> dict[str, Any]:
    """name_error: why the host's name doesn't resolve, or None. is_local: whether it leads here.

    loopback_error: why a connection over 127.0.0.1 fails, or None.
    """
    name = socket.gethostname()
    return {
        "name_error": _reason_unresolved(name),
        "is_local": is_local(name),
        "loopback_error": _reason_unconnected(),
    }


def _reason_unresolved(name: str) -> str | None:
    try:
        socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except OSError as error:
        return str(error)
    return None


def _reason_unconnected() -> str | None:
    """Connect as a rank connects to the start-up store: to a port that was reserved before."""
    try:
        with reserved_port() as port, contextlib.closing(socket.socket()) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen()
            with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client:
                listener.settimeout(TIMEOUT_S)
                accepted, _ = listener.accept()
                with accepted:
                    accepted.settimeout(TIMEOUT_S)
                    client.sendall(b"dwdp")
                    heard = accepted.recv(4)
    except OSError as error:
        return str(error)
    return None if heard == b"dwdp" else f"expected 4 bytes, got {heard!r}"
