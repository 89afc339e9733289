# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Two ranks prefill for a stock decode server, which gets the KV cache by vLLM's NixlConnector."""

import json
import re
import urllib.request

import pytest
from forms import DWDP, EAGER, assert_all_end, post
from support.ports import free_port
from support.server import Server

pytestmark = pytest.mark.slow
TRANSFER = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
PROMPTS = [f"{start} {'and it came to pass ' * 40}" for start in ("Emma", "The LORD", "She", "He")]
GREEDY = {"temperature": 0, "ignore_eos": True}
FOR_DECODE = {"do_remote_decode": True, "do_remote_prefill": False}


@pytest.fixture
def servers(demo_model, tmp_path):
    """[server of prefill rank 0, server of prefill rank 1, decode server]."""
    pytest.importorskip("nixl", reason="KV transfer needs nixl: pip install nixl")
    transfer = ("--kv-transfer-config", json.dumps(TRANSFER))
    ranks = ("--data-parallel-size", "2", "--data-parallel-rpc-port", str(free_port(2)), *DWDP)
    options = [(*ranks, "--data-parallel-rank", str(rank)) for rank in range(2)]
    options += [(*EAGER, "--no-enable-prefix-caching")]  # computes a prompt again
    made = []
    try:
        for i, own in enumerate(options):
            # Ports of their own, also if vLLM adds a rank's number to the port.
            side_channel = {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port(3))}
            log = tmp_path / str(i)
            made.append(Server(demo_model, *own, *transfer, log=log, environment=side_channel))
        for server in made:
            server.wait_until_ready()
        yield made
    finally:
        assert_all_end(made)


def complete(server, prompt, **options):
    with post(server, "/v1/completions", {"prompt": prompt, **GREEDY, **options}) as answer:
        return json.load(answer)


def tokens_from_elsewhere(server):
    """The number of prompt tokens that came through the connector, by the server's metrics."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
        name = r"^vllm:external_prefix_cache_hits_total\{.*\} (\S+)$"
        return sum(map(float, re.findall(name, answer.read().decode(), re.M)))


def through_a_prefill_rank(rank, decode, prompt):
    """Prefill on the rank, then decode; the rank's answer says where its KV cache is.

    A proxy does the same in a deployment.
    """
    prefilled = complete(rank, prompt, max_tokens=1, kv_transfer_params=FOR_DECODE)
    params = prefilled["kv_transfer_params"]
    return complete(decode, prompt, max_tokens=16, kv_transfer_params=params)


def test_prefill_ranks_before_a_stock_decode_server_give_stock_tokens(servers):
    *ranks, decode = servers
    answers = [through_a_prefill_rank(ranks[i % 2], decode, p) for i, p in enumerate(PROMPTS)]
    from_ranks = tokens_from_elsewhere(decode)
    assert from_ranks > 100 * len(PROMPTS)
    alone = [complete(decode, prompt, max_tokens=16) for prompt in PROMPTS]
    assert tokens_from_elsewhere(decode) == from_ranks, "the server computed its prompts itself"
    assert [a["choices"][0]["text"] for a in answers] == [a["choices"][0]["text"] for a in alone]
