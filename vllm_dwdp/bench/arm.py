# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""An arm: the running servers of one deployment."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable

import psutil

from vllm_dwdp.bench.server import Server
from vllm_dwdp.memory.residency import group_resident_bytes, process_proportional_bytes


class Arm:
    """The servers of a deployment, each with all processes that it started."""

    def __init__(self, name: str, servers: list[Server]) -> None:
        self.name = name
        self.servers = servers

    def pause(self) -> None:
        """Stop all processes (SIGSTOP); they keep their memory and take no processor time."""
        self._each(psutil.Process.suspend)

    def resume(self) -> None:
        self._each(psutil.Process.resume)

    def stop(self) -> None:
        self.resume()
        for server in self.servers:
            server.stop()

    def pids(self) -> list[int]:
        found: list[int] = []
        self._each(lambda process: found.append(process.pid))
        return found

    def cpu_seconds(self) -> Counter[str]:
        """CPU seconds used so far, by the titles of the processes without their numbers."""
        used: Counter[str] = Counter()

        def count(process: psutil.Process) -> None:
            times = process.cpu_times()
            used[_title(process)] += times.user + times.system

        self._each(count)
        return used

    def host_bytes(self) -> int:
        """Resident bytes of all processes; pages that several processes map count once (PSS)."""
        found = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):  # a process that ended meanwhile
                found += process_proportional_bytes(pid)
        return found

    def shared_expert_bytes(self) -> int:
        """Resident bytes of experts in memory that ranks share; 0 for other arms."""
        found = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                found += group_resident_bytes([pid])
        return found

    def _each(self, act: Callable[[psutil.Process], object]) -> None:
        """Call `act` for every process of every server; skip processes that end meanwhile."""
        for server in self.servers:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in server.family():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        act(process)


def _title(process: psutil.Process) -> str:
    first = (process.cmdline() or ["ended"])[0]
    return re.sub(r"[_\d]*(DP\d+)?$", "", first) if first.startswith("VLLM::") else "others"
