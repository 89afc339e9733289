# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which addresses belong to this host."""

import socket
from collections.abc import Iterator
from typing import Any


def is_local(address: str) -> bool:
    """Whether an address belongs to this host: only then can a socket be bound to it."""
    return any(_can_bind(family, sockaddr) for family, sockaddr in _resolve(address))


def _resolve(address: str) -> Iterator[tuple[int, Any]]:
    try:
        infos = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    except OSError:
        return
    for family, _, _, _, sockaddr in infos:
        yield family, sockaddr


def _can_bind(family: int, sockaddr: Any) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(sockaddr)
        except OSError:
            return False
    return True
