# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Speculative decoding: every rank drafts, and tokens equal those of stock vLLM with it."""

import json
import re
import urllib.request

import pytest
from support import leftovers
from support.server import Server

pytestmark = pytest.mark.whole

NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
}


def drafts_by_engine(server):
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        text = answer.read().decode()
    row = r'^vllm:spec_decode_num_drafts_total\{engine="(\d)".*\} (\S+)$'
    return {engine: float(number) for engine, number in re.findall(row, text, re.MULTILINE)}


def test_both_ranks_draft_from_the_prompt(generate, demo_model, tmp_path):
    stock = generate("--stock", "--eager", "--options", json.dumps({"speculative_config": NGRAM}))
    server = Server(
        demo_model,
        *("--data-parallel-size", "2", "--distributed-executor-backend", "dwdp"),
        *("--max-model-len", "512", "--enforce-eager"),
        *("--speculative-config", json.dumps(NGRAM)),
        log=tmp_path / "log",
    )
    try:
        server.wait_until_ready()
        outputs = stock["outputs"]
        texts = [server.complete(o["prompt"], len(o["tokens"])) for o in outputs]
        assert texts == [o["text"] for o in outputs]
        drafts = drafts_by_engine(server)
        assert drafts.keys() == {"0", "1"} and all(drafts.values()), drafts
    finally:
        server.stop()
    assert leftovers.of_these_tests() == set()


def test_a_draft_model_with_experts_has_all_of_them_on_every_rank(generate, demo_model):
    """The demo model drafts for itself. What the draft holds is compared in test_loading.py."""
    drafts = {"model": str(demo_model), "num_speculative_tokens": 2}
    options = "--eager", "--options", json.dumps({"speculative_config": drafts})
    stock, ranks = generate("--stock", *options), generate(*options)
    assert ranks["outputs"] == stock["outputs"]
    for stats in ranks["stats"]:
        assert stats["expert_bytes_owned"] == stats["expert_bytes_read"], "the model's own alone"
