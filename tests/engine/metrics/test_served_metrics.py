# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Servers show the metrics of their ranks, whatever the number of API servers and front-ends."""

import json

import pytest
from forms import EAGER, post, server_per_rank
from support.metrics import wait_for

pytestmark = pytest.mark.whole

PROMPT = "It is a truth universally acknowledged " * 12
ALIVE = "dwdp:group_members_alive"


def ask(server, rank):
    headers = {"X-data-parallel-rank": str(rank)}
    with post(server, "/v1/completions", {"prompt": PROMPT, "max_tokens": 4}, headers) as answer:
        return json.load(answer)


def statistics(server):
    """What `dwdp_stats` of rank 0 says."""
    status, text = server.call("POST", "/collective_rpc", {"method": "dwdp_stats"})
    assert status == 200, text
    return json.loads(text)["results"][0]


def test_metrics_of_both_ranks_agree_with_their_statistics(server, request):
    for rank in (0, 1, 1):
        ask(server, rank)
    told = statistics(server)
    copied = sum(told["bytes_fetched"]["prefetch"])
    assert copied > 0
    found = wait_for(server, "dwdp:bytes_fetched_total", ("0", "prefetch"), copied)
    steps = found["dwdp:steps_total"]
    assert {engine for engine, *_ in steps} == {"0", "1"}
    assert steps["1", "prefetch"] > steps["0", "prefetch"] == told["steps"]["prefetch"] > 0
    assert found[ALIVE] == {("0",): 2, ("1",): 2}
    assert found["dwdp:mapped_expert_bytes"]["0",] == told["expert_bytes_from_peers"] > 0
    assert found["dwdp:slot_bytes"]["0",] == told["slot_bytes"] > 0
    gained = told["kv_tokens"] - told["kv_with_all_experts"]
    assert found["dwdp:kv_tokens_gained"]["0",] == gained
    assert found["dwdp:pending_prefill_tokens"] == {("0",): 0, ("1",): 0}
    by_layer = found.get("dwdp:layer_exposed_wait_seconds_total", {})
    num_layers = told["num_layers"] if "one front-end" in request.node.name else 0
    assert len(by_layer) == 2 * num_layers


def test_a_rank_with_a_front_end_of_its_own_counts_the_living_members(demo_model, tmp_path):
    with server_per_rank(demo_model, tmp_path, *EAGER) as servers:
        for rank, server in enumerate(servers):
            found = wait_for(server, ALIVE, (str(rank),), 2)
            assert len(found[ALIVE]) == 1
        for process in servers[1].family():
            process.kill()
        wait_for(servers[0], ALIVE, ("0",), 1)
        assert servers[0].complete(PROMPT, 4)
