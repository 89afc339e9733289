# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ranks that prefill for stock decode servers, in each form of serving and with each connector.

Each form takes some five minutes on two cores; four of them are the start of the servers. A push
takes ten seconds, since NIXL's threads wait for the cores of the engines.
"""

import json

import msgspec
import pytest
import zmq
from disaggregated import (
    MAX_TOKENS,
    alone,
    ask,
    deployment,
    prefill,
    router,
    through,
    tokens_from_elsewhere,
)
from forms import finished_by_engine
from vllm.distributed.kv_events import KVEventBatch

from vllm_dwdp.bench.ports import free_port

pytestmark = pytest.mark.slow
FORMS = {
    "external": "NixlPushConnector",
    "internal": "NixlPullConnector",
    "supervisor": "MultiConnector",
    "hybrid": "NixlPullConnector",
}
STARTS = ("Emma", "The LORD", "She", "He", "It", "They", "We", "All")
PROMPTS = [f"{start} {'and it came to pass ' * 40}" for start in STARTS]


@pytest.fixture(scope="module", params=FORMS)
def deployed(request, demo_model, tmp_path_factory):
    """Two prefill ranks in one form, before two stock decode servers."""
    pytest.importorskip("nixl", reason="KV transfer needs nixl: pip install nixl")
    form, logs = request.param, tmp_path_factory.mktemp(request.param)
    with deployment(demo_model, logs, form, FORMS[form]) as made:
        yield made


def test_text_of_every_pair_of_a_rank_and_a_decode_server_is_stocks(deployed):
    first = deployed.decode[0]
    pairs = [(rank, server) for server in deployed.decode for rank in deployed.ranks]
    prompts = PROMPTS[: len(pairs)]
    expected = {prompt: alone(first, prompt) for prompt in prompts}
    assert tokens_from_elsewhere(first) == 0, "the server must compute its prompts itself"
    texts = {p: through(*pair, p) for p, pair in zip(prompts, pairs, strict=True)}
    assert texts == expected
    assert sum(map(tokens_from_elsewhere, deployed.decode)) > 100 * len(prompts)


def test_text_through_vllms_router_is_stocks(deployed, tmp_path):
    pytest.importorskip("vllm_router", reason="pip install vllm-router")
    urls = {rank.server.url for rank in deployed.ranks}
    if len(urls) < len(deployed.ranks):
        pytest.skip("the router knows servers, not the ranks of one")
    prompts = ["Now " + prompt for prompt in PROMPTS[:3]]
    expected = [alone(deployed.decode[0], prompt) for prompt in prompts]
    port = free_port(2)
    with router(deployed.ranks, deployed.decode, tmp_path / "router", port) as made:
        texts = [ask(made, p, max_tokens=MAX_TOKENS)["choices"][0]["text"] for p in prompts]
    assert texts == expected


def test_ports_and_engine_ids_follow_the_rank(deployed):
    told = [prefill(rank, PROMPTS[0], f"told-{r}") for r, rank in enumerate(deployed.ranks)]
    numbers = range(len(told))
    assert [t["remote_port"] - deployed.side_channel for t in told] == list(numbers)
    assert [t["remote_engine_id"].rpartition("_dp")[2] for t in told] == [str(r) for r in numbers]
    assert len({t["remote_engine_id"] for t in told}) == len(told)


def test_kv_events_of_each_rank_come_from_its_own_port(deployed):
    for number, rank in enumerate(deployed.ranks):
        with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
            subscriber.connect(f"tcp://127.0.0.1:{deployed.kv_events + number}")
            subscriber.subscribe("kv")
            for attempt in range(20):  # it takes a moment until a subscription works
                prefill(rank, f"{number} {attempt} {PROMPTS[1]}", f"event-{number}-{attempt}")
                if subscriber.poll(500):
                    break
            else:
                pytest.fail(f"no event of rank {number} came within 20 requests")
            batch = msgspec.msgpack.decode(subscriber.recv_multipart()[-1], type=KVEventBatch)
        assert batch.data_parallel_rank == number


def test_router_reads_how_many_ranks_a_server_has_and_which(deployed):
    """`/server_info` has sizes and the first rank; the metrics have the number of each rank."""
    ranks_of = {}
    for number, rank in enumerate(deployed.ranks):
        prefill(rank, PROMPTS[2], f"counted-{number}")
        ranks_of.setdefault(rank.server.url, (rank.server, []))[1].append(number)
    for server, numbers in ranks_of.values():
        assert set(finished_by_engine(server)) == {str(number) for number in numbers}
        is_alone = len(numbers) == 1
        size = 1 if is_alone else len(deployed.ranks)
        expected = {"size": size, "size_local": len(numbers), "rank": numbers[0]}
        assert data_parallel_fields(server, expected) == expected


def data_parallel_fields(server, names):
    info = json.loads(server.call("GET", "/server_info?config_format=json")[1])
    found = info["vllm_config"]["parallel_config"]
    return {name: found[f"data_parallel_{name}"] for name in names}


def test_example_connector_brings_a_prompt_to_the_other_rank(deployed):
    """Only MultiConnector has it here: one rank saves a prompt to a folder, the other loads it."""
    expected = alone(deployed.decode[0], "Again " + PROMPTS[3])
    for rank in deployed.ranks:
        assert through(rank, deployed.decode[0], "Again " + PROMPTS[3]) == expected
    is_loaded = any(tokens_from_elsewhere(rank.server) > 0 for rank in deployed.ranks)
    assert is_loaded == (deployed.connector == "MultiConnector")
