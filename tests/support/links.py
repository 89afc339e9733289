# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Links this machine to a host that is made of Linux namespaces, see hosts.py. Needs root."""

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WAIT_S = 30


@dataclass(frozen=True)
class Link:
    """A network of this machine and one host: the host's device, and both addresses."""

    peer_name: str
    address: str
    peer_address: str

    def steps(self) -> Sequence[str]:
        """What a host does first to take up its end of the link, once it is plugged in.

        It gets no route to anywhere else: it would wait for name servers that it can't reach.
        """
        return (
            "ip link set lo up",
            f"until ip link show {self.peer_name} > /dev/null 2>&1; do sleep 0.1; done",
            f"ip addr add {self.peer_address}/30 dev {self.peer_name}",
            f"ip link set {self.peer_name} up",
        )

    def plug_into(self, host: "subprocess.Popen[bytes]") -> None:
        """Give the other end to the host that this process runs, which has its own network."""
        deadline = time.monotonic() + WAIT_S
        while os.readlink(f"/proc/{host.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            assert time.monotonic() < deadline, "the host made no network of its own"
            time.sleep(0.05)
        _ip("link", "set", self.peer_name, "netns", str(host.pid))


@contextlib.contextmanager
def linked() -> Iterator[Link]:
    """Make a link for as long as the `with` block runs, with names and addresses of its own."""
    number = random.SystemRandom().randrange(1 << 14)
    block, first = f"10.214.{number >> 6}", (number & 63) * 4
    # A bridge has this machine's address, so that it stays when the host and the cable are gone.
    bridge, cable = f"dwdp{number}", f"dwdp{number}a"
    made = Link(f"dwdp{number}b", f"{block}.{first + 1}", f"{block}.{first + 2}")
    _ip("link", "add", bridge, "type", "bridge")
    try:
        _ip("addr", "add", f"{made.address}/30", "dev", bridge)
        _ip("link", "add", cable, "type", "veth", "peer", "name", made.peer_name)
        _ip("link", "set", cable, "master", bridge, "up")
        _ip("link", "set", bridge, "up")
        yield made
    finally:
        _ip("link", "del", bridge)
        # The cable is gone already if the host that had its other end is.
        subprocess.run(("ip", "link", "del", cable), stderr=subprocess.DEVNULL)


def _ip(*arguments: str) -> None:
    subprocess.run(("ip", *arguments), check=True)
