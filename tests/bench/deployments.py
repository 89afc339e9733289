# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Deployments that use the same two cores in turns: all but one are stopped at any time."""

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.server import Server

KV_CACHE_BYTES = 512 << 20
"""KV cache of each engine. Even one of them holds several times the requests under way."""
COMMON = ("--no-enable-prefix-caching", "--max-model-len", "2048")
COMMON += ("--kv-cache-memory-bytes", str(KV_CACHE_BYTES))
DWDP = ("--data-parallel-size", "2", "--distributed-executor-backend", "dwdp")
RECIPES = {
    "dwdp": [("auto", DWDP)],
    "tp2": [("0|1", ("--tensor-parallel-size", "2"))],
    "replicas": [("0", ()), ("1", ())],
    "one": [("0-1", ())],
}
"""By deployment: each server's value of VLLM_CPU_OMP_THREADS_BIND, and its options."""


class Deployment:
    """One server that all clients use, or one server for each client."""

    def __init__(self, servers: list[Server]) -> None:
        self.servers = servers

    def pause(self) -> None:
        self._each(psutil.Process.suspend)

    def resume(self) -> None:
        self._each(psutil.Process.resume)

    def cpu_seconds(self) -> Counter[str]:
        """CPU seconds used so far, by the titles of the processes without their numbers."""
        used: Counter[str] = Counter()

        def count(process: psutil.Process) -> None:
            times = process.cpu_times()
            used[_title(process)] += times.user + times.system

        self._each(count)
        return used

    def _each(self, act: Callable[[psutil.Process], None]) -> None:
        """Call `act` for every process of every server; skip processes that end meanwhile."""
        for server in self.servers:
            for process in server.family():
                with contextlib.suppress(psutil.NoSuchProcess):
                    act(process)


def _title(process: psutil.Process) -> str:
    first = process.cmdline()[0]
    return re.sub(r"[_\d]*(DP\d+)?$", "", first) if first.startswith("VLLM::") else "others"


@contextlib.contextmanager
def deployments(model: Path, logs: Path, names: list[str]) -> Iterator[dict[str, Deployment]]:
    """Start the deployments of these names; each is ready, and stopped by SIGSTOP."""
    made: dict[str, Deployment] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            made[name] = Deployment(
                [
                    stack.enter_context(_server(model, logs / f"{name}{i}.log", cores, options))
                    for i, (cores, options) in enumerate(RECIPES[name])
                ]
            )
            for server in made[name].servers:
                server.wait_until_ready()
            made[name].pause()
        yield made


@contextlib.contextmanager
def _server(model: Path, log: Path, cores: str, options: tuple[str, ...]) -> Iterator[Server]:
    environment = {"VLLM_CPU_OMP_THREADS_BIND": cores}
    server = Server(model, *COMMON, *options, log=log, environment=environment)
    try:
        yield server
    finally:
        Deployment([server]).resume()
        server.stop()
