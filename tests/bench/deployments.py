# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The deployments that share a host's two cores in turns; those that don't work are stopped."""

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
"""Of each engine: room for several times what the clients have under way, all engines together."""
COMMON = ("--no-enable-prefix-caching", "--max-model-len", "2048")
COMMON += ("--kv-cache-memory-bytes", str(KV_CACHE_BYTES))
DWDP = ("--data-parallel-size", "2", "--distributed-executor-backend", "dwdp")
RECIPES = {
    "dwdp": [("auto", DWDP)],
    "tp2": [("0|1", ("--tensor-parallel-size", "2"))],
    "replicas": [("0", ()), ("1", ())],
    "one": [("0-1", ())],
}
"""By name: for each server the cores of its workers, as vLLM wants them said, and its options."""


class Deployment:
    """The servers that share the work: one that takes all clients, or one for each."""

    def __init__(self, servers: list[Server]) -> None:
        self.servers = servers

    def pause(self) -> None:
        self._each(psutil.Process.suspend)

    def resume(self) -> None:
        self._each(psutil.Process.resume)

    def cpu_seconds(self) -> Counter[str]:
        """What its processes have used until now, by their titles without numbers."""
        used: Counter[str] = Counter()

        def count(process: psutil.Process) -> None:
            times = process.cpu_times()
            used[_title(process)] += times.user + times.system

        self._each(count)
        return used

    def _each(self, act: Callable[[psutil.Process], None]) -> None:
        """For every process of every server, but those that end meanwhile."""
        for server in self.servers:
            for process in server.family():
                with contextlib.suppress(psutil.NoSuchProcess):
                    act(process)


def _title(process: psutil.Process) -> str:
    first = process.cmdline()[0]
    return re.sub(r"[_\d]*(DP\d+)?$", "", first) if first.startswith("VLLM::") else "others"


@contextlib.contextmanager
def deployments(model: Path, logs: Path, names: list[str]) -> Iterator[dict[str, Deployment]]:
    """Those of these names, ready and stopped by SIGSTOP."""
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
