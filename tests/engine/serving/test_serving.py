# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Servers started in different ways answer as stock vLLM does, and end on Ctrl-C."""

import pytest
from cuda_stand_in import CUDA_STAND_IN
from forms import assert_all_end, assert_answers_like_stock
from support.metrics import samples, wait_for
from support.server import Server

from vllm_dwdp.bench.ports import free_port

pytestmark = pytest.mark.whole

OPTIONS = ("--max-model-len", "512", "--distributed-executor-backend", "dwdp")
SECRET = "a secret of these tests"


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
        for server, ranks in zip(servers, ("01", "23"), strict=True):
            for rank in ranks:
                wait_for(server, "dwdp:group_members_alive", (rank,), 4)
            engines = {engine for engine, *_ in samples(server)["dwdp:steps_total"]}
            assert engines == set(ranks)
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
