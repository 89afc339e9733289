# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What tests of the forms of serving ask of servers, beyond one completion."""

import contextlib
import copy
import json
import re
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

from support import leftovers
from support.ports import free_port
from support.server import Server

EAGER = ("--max-model-len", "512", "--enforce-eager")
DWDP = (*EAGER, "--distributed-executor-backend", "dwdp")
TWO_RANKS = ("--data-parallel-size", "2", *DWDP)
REQUEST_S = 120


@contextlib.contextmanager
def server_per_rank(model, logs, *options, environment=MappingProxyType({})):
    """The two ranks of one job, each behind a front-end of its own, ready to answer."""
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


def supervisor(port):
    """A server for each of two ranks, at this port and the next; their supervisor at the third."""
    options = ("--data-parallel-multi-port-external-lb", "--data-parallel-size-local", "2")
    options += ("--port", str(port), "--data-parallel-supervisor-port", str(port + 2))
    return (*options, "--data-parallel-rpc-port", str(free_port(2)))


def at_port(server, port):
    """The same server, asked at another of its ports."""
    other = copy.copy(server)
    other.port = port
    return other


def post(server, path, body):
    """The open HTTP response to a JSON body."""
    data = json.dumps({"model": "demo", **body}).encode()
    request = urllib.request.Request(
        f"{server.url}{path}", data, {"content-type": "application/json"}
    )
    return urllib.request.urlopen(request, timeout=REQUEST_S)


def finished_by_engine(server):
    """How many requests each engine behind a server has finished, by vLLM's engine label."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=REQUEST_S) as answer:
        lines = answer.read().decode()
    found = re.findall(r'^vllm:request_success_total\{engine="(\d+)".* (\S+)$', lines, re.M)
    return {engine: sum(float(n) for e, n in found if e == engine) for engine, _ in found}


def owned_experts(text):
    """The runs of experts that ranks own, as they say in the log of their start."""
    return sorted(re.findall(r"MoE layers, experts (\[\d+, \d+\)) of 16", text))


def assert_answers_like_stock(servers, stock):
    """All 64 prompts, spread over the servers, a few at a time on every rank."""
    expected = [(o["prompt"], len(o["tokens"]), o["text"]) for o in stock["outputs"]]
    jobs = [(servers[i % len(servers)], *job) for i, job in enumerate(expected)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        texts = list(pool.map(lambda job: job[0].complete(job[1], job[2]), jobs))
    assert texts == [job[3] for job in jobs]


def assert_all_end(servers):
    codes = [server.stop(signal.SIGINT) for server in servers]
    assert None not in codes, "a process had to be killed"
    assert leftovers.of_these_tests() == set()
