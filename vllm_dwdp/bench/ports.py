# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Free ports, outside of the range from which the kernel gives ports to connections."""

import random
import socket
from pathlib import Path

LOWEST = 20_000
GIVEN_BY_KERNEL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(count: int = 1) -> int:
    """The first of `count` free ports in a row on loopback."""
    end = int(GIVEN_BY_KERNEL.read_text().split()[0]) - count
    while True:
        first = random.SystemRandom().randrange(LOWEST, end)
        if all(_is_free(port) for port in range(first, first + count)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
