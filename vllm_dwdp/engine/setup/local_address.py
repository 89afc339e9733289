# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Tells which addresses belong to this host, and reserves a port for one process."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any


def is_local(address: str) -> bool:
    """Whether an address belongs to this host, so that a socket can be bound to it."""
    return any(_can_bind(family, sockaddr) for family, sockaddr in _resolve(address))


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a loopback port for one listener: the kernel gives it to no other program.

    This context holds the port with a socket that doesn't listen. The kernel lets another socket
    listen on the same port if both set SO_REUSEADDR, as the rendezvous and vLLM's servers do.
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
