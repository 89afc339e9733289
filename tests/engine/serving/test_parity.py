# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Tokens and log-probabilities of ranks equal those of stock vLLM exactly."""

import json
import re

import pytest

KV_CACHE_BYTES = 1 << 30
"""The engines' KV cache, which conftest.py sets by VLLM_CPU_KVCACHE_SPACE."""


def assert_equal(dwdp, stock):
    assert len(stock["outputs"]) >= 64
    assert dwdp["outputs"] == stock["outputs"]
    assert all(any(stats["forwards"]) for stats in dwdp["stats"])
    assert "MoE layers, experts [0, " in dwdp["log"]


def test_two_compiled_ranks_equal_stock_vllm(generate, stock):
    assert_equal(generate("--ranks", "2"), stock)


def test_one_eager_rank_equals_stock_vllm(generate, stock_eager):
    assert_equal(generate("--eager", "--ranks", "1"), stock_eager)


@pytest.mark.whole
def test_three_ranks_with_redundant_experts_on_selective_equal_stock_vllm(generate, stock_eager):
    config = {"num_experts_per_worker": 7, "fetch": "selective"}
    ranks = generate("--eager", "--ranks", "3", "--config", json.dumps(config))
    assert_equal(ranks, stock_eager)
    for stats in ranks["stats"]:
        assert stats["steps"]["selective"] == sum(stats["steps"].values()) > 0
        assert sum(stats["bytes_fetched"]["selective"]) > 0


@pytest.mark.whole
def test_ranks_with_copies_of_the_experts_that_an_earlier_run_chose_equal_stock_vllm(
    generate, stock_eager, tmp_path
):
    config = {"fetch": "selective", "extra_expert_bytes": 1 << 20}
    until_saved = "12"
    options = ("--eager", "--config", json.dumps(config), "--linger", until_saved)
    first, second = (
        generate(*options, VLLM_CACHE_ROOT=str(tmp_path), TURN=turn) for turn in ("1", "2")
    )
    files = tmp_path.glob("dwdp/expert_counts/*/rank-*.json")
    assert sorted(file.name for file in files) == ["rank-0.json", "rank-1.json"]
    assert_equal(first, stock_eager)
    assert_equal(second, stock_eager)
    for before, after in zip(first["stats"], second["stats"], strict=True):
        assert before["expert_bytes_extra"] == 0
        assert (1 << 20) - (1 << 18) < after["expert_bytes_extra"] <= 1 << 20
        assert after["expert_bytes_from_peers"] < before["expert_bytes_from_peers"]
    fetched = [
        sum(sum(stats["bytes_fetched"]["selective"]) for stats in run["stats"])
        for run in (first, second)
    ]
    assert 0 < fetched[1] < 0.8 * fetched[0]


@pytest.mark.whole
def test_compiled_ranks_that_mix_modes_by_the_step_equal_stock_vllm(generate, stock):
    """The given figures make large prefills prefetch, and decodes read in place."""
    config = {"link_gb_per_s": 0.05, "compute_us_per_token": 1000}
    ranks = generate("--ranks", "2", "--config", json.dumps(config))
    assert_equal(ranks, stock)
    for mode in ("direct", "prefetch"):  # a slow rank may take few of the long prompts
        assert sum(stats["steps"][mode] for stats in ranks["stats"]) > 4
    assert all(stats["fetch"] in ranks["log"] for stats in ranks["stats"])


@pytest.mark.whole
def test_a_rank_alone_with_experts_in_host_memory_equals_stock_vllm(
    generate, stock_eager, demo_model
):
    """The GPU has no room for some of the experts; the host is the only link to measure."""
    model_bytes = sum(file.stat().st_size for file in demo_model.glob("*.safetensors"))
    alone = generate(
        *("--eager", "--ranks", "1", "--config", '{"host_experts": "auto"}'),
        on_cuda=True,
        gpu_bytes=KV_CACHE_BYTES + model_bytes,
    )
    assert_equal(alone, stock_eager)
    (number,) = re.findall(r"host_experts=auto: (\d+) of a rank's experts", alone["log"])
    assert 0 < int(number) < 15
    (stats,) = alone["stats"]
    (copies,) = stats["link_gb_per_s"]["copies"]
    assert copies > 0
    assert "by rank of the group: the host " in alone["log"]


@pytest.mark.whole
def test_ranks_on_the_cuda_path_with_experts_in_host_memory_equal_stock_vllm(generate, stock_eager):
    """Blocks, views, slots and copies go through the CUDA driver's calls, here the fake one's."""
    config = '{"fetch": "prefetch", "host_experts": 3}'
    ranks = generate("--eager", "--config", config, on_cuda=True)
    assert_equal(ranks, stock_eager)
    for stats in ranks["stats"]:
        assert stats["steps"]["prefetch"] == sum(stats["steps"].values()) > 0
        assert all(stats["bytes_fetched"]["prefetch"]), "of every rank's host, its own included"
        assert stats["memory"] == "cuda"
        assert stats["misses"] == 0


@pytest.mark.whole
def test_four_ranks_on_prefetch_with_chunked_prefill_equal_stock_vllm(generate, dense_first_model):
    """The model has a dense layer and five MoE layers, which use three slots."""
    same = ["--eager", "--options", '{"max_num_batched_tokens": 64, "max_num_seqs": 32}']
    config = ["--ranks", "4", "--config", '{"fetch": "prefetch", "num_slots": 3}']
    ranks = generate(*same, *config, model=dense_first_model)
    assert_equal(ranks, generate("--stock", *same, model=dense_first_model))
    for stats in ranks["stats"]:
        assert stats["num_layers"] == 5
        assert stats["steps"]["prefetch"] == sum(stats["steps"].values()) > 0
        assert stats["misses"] == 0


def test_each_rank_reads_and_holds_only_its_experts(generate):
    stats = generate("--ranks", "2")["stats"]
    total = sum(s["expert_bytes_read"] for s in stats)
    assert [s["experts_owned"] for s in stats] == [[0, 8], [8, 16]]
    assert [s["expert_bytes_read"] for s in stats] == [total // 2] * 2
    assert sum(s["expert_bytes_owned"] for s in stats) <= 1.02 * total
