# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Two ranks serve the demo model as an embedding model."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from forms import EAGER, TWO_RANKS, assert_all_end, finished_by_engine, post
from support.server import Server

pytestmark = pytest.mark.whole

EMBED = ("--runner", "pooling", "--convert", "embed", "--max-num-seqs", "1")
PROMPTS = [f"{start} and it came to pass {n}" for n in range(16) for start in ("Emma", "The LORD")]


def embeddings(server):
    """The embedding of each prompt. Two prompts are under way at a time, so both ranks work."""

    def embed(prompt):
        with post(server, "/v1/embeddings", {"input": prompt}) as answer:
            return json.load(answer)["data"][0]["embedding"]

    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(embed, PROMPTS))


def test_embeddings_of_both_ranks_equal_stock(demo_model, tmp_path):
    stock = Server(demo_model, *EAGER, *EMBED, log=tmp_path / "stock")
    ranks = Server(demo_model, *TWO_RANKS, *EMBED, log=tmp_path / "ranks")
    try:
        for server in (stock, ranks):
            server.wait_until_ready()
        expected = embeddings(stock)
        assert len({tuple(embedding) for embedding in expected}) == len(PROMPTS)
        assert embeddings(ranks) == expected
        assert all(finished_by_engine(ranks).values()) and len(finished_by_engine(ranks)) == 2
    finally:
        assert_all_end([stock, ranks])
