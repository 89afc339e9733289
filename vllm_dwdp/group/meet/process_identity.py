# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The identity of a rank's process, by which peers on its host check that it lives."""

import dataclasses
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """A process on one host, between two boots of that host.

    start_ticks: when it started, see `start_ticks`; tells it from a later one with the same pid.
    """

    pid: int
    start_ticks: int
    uid: int
    host: str
    boot_id: str
    namespaces: str

    @classmethod
    def own(cls) -> "ProcessIdentity":
        pid = os.getpid()
        return cls(
            pid=pid,
            start_ticks=start_ticks(pid),
            uid=os.geteuid(),
            host=socket.gethostname(),
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            namespaces=" ".join(os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "user")),
        )

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "ProcessIdentity":
        return cls(**json.loads(data))

    def reason_not_reachable(self, peer: "ProcessIdentity") -> str | None:
        """Why this process can't get file descriptors from a peer; None if it can."""
        if peer.boot_id != self.boot_id:
            return (
                f"it is on host {peer.host}, this rank on {self.host}, and file descriptors reach "
                "no other; start all ranks on one host"
            )
        if peer.namespaces != self.namespaces:
            return (
                f"it is in another namespace ({peer.namespaces} against {self.namespaces}); "
                "start all ranks in one container"
            )
        if peer.uid != self.uid:
            return f"it runs as user {peer.uid}, this rank as {self.uid}; use one user for all"
        return None

    def has_ended(self, seen_by: "ProcessIdentity") -> bool:
        """Whether the process has ended, as far as the process `seen_by` can know.

        False if `seen_by` is on another host or in another namespace.
        """
        if (self.boot_id, self.namespaces) != (seen_by.boot_id, seen_by.namespaces):
            return False
        try:
            return start_ticks(self.pid) != self.start_ticks
        except OSError:
            return True


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot. Raises OSError when it has ended.

    Field 22 of /proc/PID/stat; a zombie counts as ended. The process's name before it may be cut
    inside of a character.
    """
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(pid)
    return int(fields[19])
