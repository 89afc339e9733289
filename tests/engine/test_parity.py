# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Tokens and log-probabilities equal stock vLLM's, exactly."""

import pytest


def assert_equal(dwdp, stock):
    assert len(stock["outputs"]) >= 64
    assert dwdp["outputs"] == stock["outputs"]
    assert all(any(stats["forwards"]) for stats in dwdp["stats"])
    assert "MoE layers, experts [0, " in dwdp["log"]


def test_two_compiled_ranks_equal_stock_vllm(generate, stock):
    assert_equal(generate("--ranks", "2"), stock)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--ranks", "1"], id="one rank"),
        pytest.param(
            ["--ranks", "3", "--config", '{"num_experts_per_worker": 7}'],
            id="three ranks with redundant experts",
        ),
    ],
)
def test_eager_ranks_equal_stock_vllm(generate, stock_eager, arguments):
    assert_equal(generate("--eager", *arguments), stock_eager)


def test_each_rank_reads_and_holds_only_its_experts(generate):
    stats = generate("--ranks", "2")["stats"]
    total = sum(s["expert_bytes_read"] for s in stats)
    assert [s["experts_owned"] for s in stats] == [[0, 8], [8, 16]]
    assert [s["expert_bytes_read"] for s in stats] == [total // 2] * 2
    assert sum(s["expert_bytes_owned"] for s in stats) <= 1.02 * total
