# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Helpers for tests that serve in several forms: ways to start servers, and questions to them."""

import contextlib
import copy
import json
import re
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

from support import leftovers
from support.server import Server

from vllm_dwdp.bench.ports import free_port

EAGER = ("--max-model-len", "512", "--enforce-eager")
DWDP = (*EAGER, "--distributed-executor-backend", "dwdp")
TWO_RANKS = ("--data-parallel-size", "2", *DWDP)
REQUEST_S = 120


@contextlib.contextmanager
def server_per_rank(model, logs, *options, environment=MappingProxyType({})):
    """Start the two ranks of one job, each with a server of its own; both are ready to answer."""
    job = ("--data-parallel-size", "2", "--data-parallel-rpc-port", str(free_port(2)))
    job += ("--distributed-executor-backend", "dwdp", *options)
    made = [
        Server(
            model,
            *(*job, "--data-parallel-rank", str(rank)),
            log=logs / f"{rank}",
            environment=environment,
        )
        for rank in range(2)
    ]
    try:
        for server in made:
            server.wait_until_ready()
        yield made
    finally:
        for server in made:
            server.stop()


@contextlib.contextmanager
def server_in_dev_mode(model, folder, *options):
    """A server that is ready and has vLLM's calls for developers. It and its processes must end."""
    environment = {"VLLM_SERVER_DEV_MODE": "1"}
    server = Server(model, *options, log=folder / "log", environment=environment)
    try:
        server.wait_until_ready()
        yield server
    finally:
        code = server.stop()
    assert code is not None, "a process had to be killed"
    assert leftovers.of_these_tests() == set()


def supervisor(port, num_ranks=2):
    """Options for ranks with servers at `port` and the next ones, and their supervisor after."""
    options = ("--data-parallel-multi-port-external-lb",)
    options += ("--data-parallel-size-local", str(num_ranks), "--port", str(port))
    options += ("--data-parallel-supervisor-port", str(port + num_ranks))
    return (*options, "--data-parallel-rpc-port", str(free_port(2)))


def at_port(server, port):
    """The same server, but requests go to another of its ports."""
    other = copy.copy(server)
    other.port = port
    return other


def post(server, path, body, headers=MappingProxyType({})):
    """Post the body as JSON; returns the open HTTP response."""
    data = json.dumps({"model": "demo", **body}).encode()
    request = urllib.request.Request(
        f"{server.url}{path}", data, {"content-type": "application/json", **headers}
    )
    return urllib.request.urlopen(request, timeout=REQUEST_S)


def finished_by_engine(server):
    """By vLLM's engine label, the number of requests that the engine has finished."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=REQUEST_S) as answer:
        lines = answer.read().decode()
    found = re.findall(r'^vllm:request_success_total\{engine="(\d+)".* (\S+)$', lines, re.M)
    return {engine: sum(float(n) for e, n in found if e == engine) for engine, _ in found}


def owned_experts(text):
    """The runs of experts that the ranks own, as they log them at start-up; sorted."""
    return sorted(re.findall(r"MoE layers, experts (\[\d+, \d+\)) of 16", text))


def assert_answers_like_stock(servers, stock):
    """Check all 64 prompts, spread over the servers, with two requests under way at a time."""
    expected = [(o["prompt"], len(o["tokens"]), o["text"]) for o in stock["outputs"]]
    jobs = [(servers[i % len(servers)], *job) for i, job in enumerate(expected)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        texts = list(pool.map(lambda job: job[0].complete(job[1], job[2]), jobs))
    assert texts == [job[3] for job in jobs]


def assert_all_end(servers):
    codes = [server.stop(signal.SIGINT) for server in servers]
    assert None not in codes, "a process had to be killed"
    assert leftovers.of_these_tests() == set()
