# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Servers started in different ways answer as stock vLLM does, and end on Ctrl-C."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from cuda_stand_in import CUDA_STAND_IN
from forms import assert_all_end, assert_answers_like_stock
from support.ports import free_port
from support.server import Server

OPTIONS = ("--max-model-len", "512", "--distributed-executor-backend", "dwdp")
SECRET = "a secret of these tests"
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def ray_node(monkeypatch):
    """One Ray node with room for two engines: an engine takes two logical CPUs.

    It has ports of its own, so that it doesn't meet another Ray on the machine.
    """
    port, client, agent, workers = free_port(), free_port(), free_port(), free_port(100)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    options = ["--num-cpus=4", "--include-dashboard=false", "--disable-usage-stats"]
    options += ["--node-ip-address=127.0.0.1", f"--port={port}"]
    options += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    options += [f"--min-worker-port={workers}", f"--max-worker-port={workers + 99}"]
    command = [RAY, "start", "--head", "--block", *options]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as node:
        for line in node.stdout:
            if "Ray runtime started" in line:
                break
        family = psutil.Process(node.pid).children(recursive=True)
        yield
        node.terminate()
        for process in psutil.wait_procs(family, timeout=10)[1]:
            process.kill()


def test_hybrid_load_balancing(demo_model, stock_eager, tmp_path):
    options = ("--data-parallel-size", "4", "--data-parallel-size-local", "2", *OPTIONS)
    options += ("--data-parallel-hybrid-lb", "--data-parallel-address", "127.0.0.1")
    options += ("--data-parallel-rpc-port", str(free_port(2)), "--enforce-eager")
    servers = [
        Server(
            demo_model, *options, "--data-parallel-start-rank", str(rank), log=tmp_path / f"{rank}"
        )
        for rank in (0, 2)
    ]
    try:
        for server in servers:
            server.wait_until_ready()
        assert [len(server.workers()) for server in servers] == [2, 2]
        assert_answers_like_stock(servers, stock_eager)
    finally:
        assert_all_end(servers)


def two_commands(demo_model, tmp_path, *, environment, host):
    """Start a front-end with rank 0, and on `host` a headless rank 1."""
    options = ("--data-parallel-size", "2", "--data-parallel-size-local", "1", *OPTIONS)
    options += ("--data-parallel-address", "127.0.0.1", "--enforce-eager")
    options += ("--data-parallel-rpc-port", str(free_port(2)))
    headless = ("--headless", "--data-parallel-start-rank", "1")
    return [
        Server(demo_model, *options, log=tmp_path / "0", environment=environment),
        Server(
            demo_model,
            *(*options, *headless),
            log=tmp_path / "1",
            environment=environment,
            host=host,
        ),
    ]


def test_headless_ranks_on_one_host(demo_model, stock_eager, tmp_path):
    servers = two_commands(demo_model, tmp_path, environment={}, host=None)
    try:
        servers[0].wait_until_ready()
        assert "host memory, handed over as file descriptors" in servers[1].text()
        assert_answers_like_stock(servers[:1], stock_eager)
    finally:
        assert_all_end(servers)


@pytest.mark.hosts
def test_ranks_on_two_hosts_of_an_nvlink_domain(demo_model, stock_eager, tmp_path):
    domain = tmp_path / "domain"
    domain.mkdir()
    environment = CUDA_STAND_IN | {"FAKE_CUDA_FABRIC": str(domain), "VLLM_DWDP_SECRET": SECRET}
    servers = two_commands(demo_model, tmp_path, environment=environment, host="elsewhere")
    try:
        servers[0].wait_until_ready()
        for server in servers:
            assert "it is on host" in server.text(), "why there are no descriptors"
            assert "cuda memory, handed over as fabric handles" in server.text()
            assert SECRET not in server.text()
        assert_answers_like_stock(servers[:1], stock_eager)
    finally:
        assert_all_end(servers)


@pytest.mark.ray
def test_ray(demo_model, stock, tmp_path, ray_node):
    options = ("--data-parallel-size", "2", "--data-parallel-backend", "ray", *OPTIONS)
    server = Server(demo_model, *options, log=tmp_path / "log")
    try:
        server.wait_until_ready()
        assert server.text().count("DWDP rank") == 2
        assert_answers_like_stock([server], stock)
    finally:
        assert_all_end([server])
