# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""An arm: the running servers of one deployment."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable

import psutil

from vllm_dwdp.bench.server import Server
from vllm_dwdp.memory.residency import anonymous_and_shared_bytes, group_resident_bytes

GONE = (FileNotFoundError, ProcessLookupError)
"""What reading about a process raises that has ended meanwhile."""


class Arm:
    """The servers of a deployment, each with all processes that it started."""

    def __init__(self, name: str, servers: list[Server]) -> None:
        self.name = name
        self.servers = servers
        self._paused: list[psutil.Process] = []

    def pause(self) -> None:
        """Stop all processes (SIGSTOP); they keep their memory and take no processor time."""
        self._paused = self.processes()
        _each(self._paused, psutil.Process.suspend)

    def resume(self) -> None:
        """Let all processes go on that were paused, also if their server has ended meanwhile."""
        _each(self._paused, psutil.Process.resume)
        self._paused = []

    def stop(self) -> None:
        """End all servers, and all processes that they leave behind."""
        known = self._paused + self.processes()
        self.resume()
        with contextlib.ExitStack() as stack:
            stack.callback(_each, known, psutil.Process.kill)
            for server in self.servers:
                stack.callback(server.stop)

    def processes(self) -> list[psutil.Process]:
        """All processes of all servers that run."""
        found: list[psutil.Process] = []
        for server in self.servers:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += server.family()
        return found

    def cpu_seconds(self) -> Counter[str]:
        """CPU seconds used so far, by the titles of the processes without their numbers."""
        used: Counter[str] = Counter()

        def count(process: psutil.Process) -> None:
            times = process.cpu_times()
            used[_title(process)] += times.user + times.system

        _each(self.processes(), count)
        return used

    def host_bytes(self) -> int:
        """Bytes of memory of all processes; pages that several of them share count once.

        Pages of files, such as libraries, don't count.
        """
        return self._sum(anonymous_and_shared_bytes)

    def shared_expert_bytes(self) -> int:
        """Resident bytes of experts in memory that ranks share; 0 for other arms."""
        return self._sum(lambda pid: group_resident_bytes([pid]))

    def _sum(self, bytes_of: Callable[[int], int]) -> int:
        found = 0
        for process in self.processes():
            with contextlib.suppress(*GONE):
                found += bytes_of(process.pid)
        return found


def _each(processes: list[psutil.Process], act: Callable[[psutil.Process], object]) -> None:
    """Call `act` for each process that has not ended."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            act(process)


def _title(process: psutil.Process) -> str:
    """The title that vLLM gives its processes, such as VLLM::Worker for VLLM::Worker_TP1."""
    command = process.cmdline()
    is_titled = bool(command) and command[0].startswith("VLLM::")
    return re.sub(r"(_[A-Z]*\d+)+$", "", command[0]) if is_titled else "others"
