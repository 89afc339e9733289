# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Addresses of this host: which belong to it, and a port that stays free for one process."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any


def is_local(address: str) -> bool:
    """Whether an address belongs to this host: only then can a socket be bound to it."""
    return any(_can_bind(family, sockaddr) for family, sockaddr in _resolve(address))


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port of loopback that the kernel gives to no other program, while one process may listen.

    The kernel lets a listener share the port of a socket that doesn't listen, if both set
    SO_REUSEADDR, as the rendezvous of ranks and vLLM's servers do.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


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
