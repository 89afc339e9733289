# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ray places the ranks: on one node, and on two nodes with a group on each.

An engine takes two logical CPUs of its node. The tests on two nodes took about four minutes on two
busy cores.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from forms import assert_all_end, assert_answers_like_stock
from support.ray_cluster import SECOND_HOST, first_node, two_nodes
from support.server import Server

pytestmark = [pytest.mark.ray, pytest.mark.whole]
RAY = ("--data-parallel-backend", "ray", "--distributed-executor-backend", "dwdp")
GROUPS_OF_TWO = ("--additional-config", '{"dwdp": {"dwdp_size": 2}}')
EAGER = ("--max-model-len", "512", "--enforce-eager", "--api-server-count", "1")
ALL_LINES = {"RAY_DEDUP_LOGS": "0"}
"""Without this, Ray leaves out lines that look alike."""
REFUSED_S = 120
IN_FLIGHT_S = 0.5
ENDS_S = 60
"""The longest time until the server has ended after one of its nodes was killed."""


def on_two_hosts(test):
    """Mark a test that needs a second host with a network."""
    return pytest.mark.slow(pytest.mark.hosts(pytest.mark.root(test)))


def test_one_node(demo_model, stock, tmp_path):
    with first_node(num_cpus=4):
        options = ("--data-parallel-size", "2", "--max-model-len", "512")
        server = Server(demo_model, *options, *RAY, log=tmp_path / "log", environment=ALL_LINES)
        try:
            server.wait_until_ready()
            assert server.text().count("DWDP rank") == 2
            assert_answers_like_stock([server], stock)
        finally:
            assert_all_end([server])


@pytest.fixture(scope="module")
def nodes():
    """Two nodes on two hosts, each with room for two engines."""
    with two_nodes(num_cpus=4) as made:
        yield made


def two_groups(nodes, model, log, *, size_local):
    """Start a server of four ranks in two groups, so many of them on the first node."""
    options = ("--data-parallel-size", "4", "--data-parallel-size-local", str(size_local))
    options += ("--data-parallel-address", nodes.first)
    secret = log.with_name("secret")
    secret.write_text("a secret of these tests")
    environment = ALL_LINES | {"VLLM_DWDP_SECRET_FILE": str(secret)}
    return Server(model, *options, *RAY, *GROUPS_OF_TWO, *EAGER, log=log, environment=environment)


@on_two_hosts
def test_placement_with_too_many_engines_on_a_node_is_refused(
    demo_model, tmp_path, nodes, monkeypatch
):
    """vLLM alone would wait forever: it counts one CPU for each engine, and asks for two."""
    monkeypatch.setenv("VLLM_RAY_DP_PACK_STRATEGY", "fill")
    server = two_groups(nodes, demo_model, tmp_path / "log", size_local=1)
    try:
        assert server.process.wait(REFUSED_S) == 1
    finally:
        server.stop()
    last = server.text().splitlines()[-1]
    assert last.startswith("expected Ray nodes with room for 4 engines of 2 CPU each")
    assert f"vLLM would place 3 on {nodes.second}" in last
    assert f"{nodes.second} ({SECOND_HOST}): 4 CPU" in last


@on_two_hosts
def test_two_nodes_answer_like_stock_until_one_is_killed(demo_model, stock_eager, tmp_path, nodes):
    """vLLM ends the server when an engine dies; with a node it took 4 seconds."""
    server = two_groups(nodes, demo_model, tmp_path / "log", size_local=2)
    try:
        server.wait_until_ready()
        for rank in range(4):
            assert f"DWDP rank {rank} of 4 (group {rank // 2} of size 2)" in server.text()
        assert_answers_like_stock([server], stock_eager)
        with ThreadPoolExecutor(max_workers=8) as pool:
            under_way = [pool.submit(answer, server) for _ in range(8)]
            time.sleep(IN_FLIGHT_S)
            nodes.second_host.kill()
            answers = [future.result() for future in under_way]
        assert any("EngineCore encountered an issue" in text for text in answers)
        server.process.wait(ENDS_S)
        assert "engine core exited unexpectedly" in server.text()
    finally:
        server.stop()


def answer(server):
    """The answer to a request for many tokens, or the text of the error that comes instead."""
    body = {"model": "demo", "prompt": "Emma was", "max_tokens": 450, "ignore_eos": True}
    return server.call("POST", "/v1/completions", body)[1]
