# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Speculative decoding: every rank drafts, and tokens equal those of stock vLLM with it."""

import json
import re
import urllib.request

import pytest
import torch
from support import leftovers
from support.server import Server

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.setup.drafts import check_no_drafts

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


def test_experts_outside_of_the_model_are_refused():
    """A custom proposer may build MoE layers of its own, which no configuration shows."""
    model, draft = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    draft.layer_name = "draft.mlp.experts"
    check_no_drafts(torch.nn.Sequential(model), [model])
    with pytest.raises(ConfigError, match=r"one was built as 'draft\.mlp\.experts'"):
        check_no_drafts(torch.nn.Sequential(model), [model, draft])
