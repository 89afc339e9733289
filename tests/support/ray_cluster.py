# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ray clusters for tests: a first node on this machine, a second one on a host of its own.

A cluster has ports of its own, so that it doesn't meet another Ray on the machine. While it runs,
the environment names it to Ray's drivers.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from support.hosts import on_host
from support.links import linked
from vllm_dwdp.bench.ports import free_port

RAY = str(Path(sys.executable).with_name("ray"))
START = (RAY, "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000")
SECOND_HOST = "elsewhere"
END_S = 10


class TwoNodes(NamedTuple):
    """The addresses of two nodes, and the process that runs the second one's host."""

    first: str
    second: str
    second_host: "subprocess.Popen[bytes]"


@contextlib.contextmanager
def first_node(num_cpus: int, address: str = "127.0.0.1") -> Iterator[str]:
    """Run the first node of a cluster on this machine; yields the cluster's address and port."""
    port, client, agent, workers = free_port(), free_port(), free_port(), free_port(100)
    options = [f"--num-cpus={num_cpus}", "--include-dashboard=false"]
    options += [f"--node-ip-address={address}", f"--port={port}"]
    options += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    options += [f"--min-worker-port={workers}", f"--max-worker-port={workers + 99}"]
    with _running([*START, "--head", *options]) as node:
        _wait_until_started(node)
        # Otherwise it depends on a file in the user's home whether a cluster wants a token.
        os.environ.update(RAY_ADDRESS=f"{address}:{port}", RAY_AUTH_MODE="disabled")
        try:
            yield f"{address}:{port}"
        finally:
            del os.environ["RAY_ADDRESS"], os.environ["RAY_AUTH_MODE"]


@contextlib.contextmanager
def two_nodes(num_cpus: int) -> Iterator[TwoNodes]:
    """Run a cluster of two nodes, each with so many logical CPUs."""
    with linked() as link, first_node(num_cpus, link.address) as cluster:
        command = [*START, f"--address={cluster}", f"--num-cpus={num_cpus}"]
        command.append(f"--node-ip-address={link.peer_address}")
        steps = (*link.steps(), f"mount -t tmpfs tmpfs {_folder()}")
        with _running(on_host(SECOND_HOST, command, has_network=True, steps=steps)) as host:
            link.plug_into(host)
            _wait_until_started(host)
            yield TwoNodes(link.address, link.peer_address, host)


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a node, and end it and all its processes with the `with` block."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_TMPDIR": str(_folder().parent), "RAY_AUTH_MODE": "disabled"}
    environment["RAY_memory_monitor_refresh_ms"] = "0"  # Ray would kill ranks for other jobs' use
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as node:
        try:
            yield node
        finally:
            _end(node)


def _end(node: "subprocess.Popen[bytes]") -> None:
    if node.poll() is None:
        first = psutil.Process(node.pid)
        family = [first, *first.children(recursive=True)]
        node.terminate()
        for process in psutil.wait_procs(family, timeout=END_S)[1]:
            process.kill()


def _folder() -> Path:
    """The folder of Ray's sockets and logs; each host has its own at this path."""
    folder = Path(os.environ["TMPDIR"]) / "ray"
    folder.mkdir(exist_ok=True)
    return folder


def _wait_until_started(node: "subprocess.Popen[bytes]") -> None:
    assert node.stdout is not None
    assert any(b"Ray runtime started" in line for line in node.stdout), "the Ray node ended"
