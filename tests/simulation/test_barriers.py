# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What meeting in every layer costs expert parallelism, and not DWDP."""

import pytest
from simulated import DEP, costs, full_steps, run

from vllm_dwdp.simulation.chunk import Request
from vllm_dwdp.simulation.speeds import Speeds

LAYER = costs(num_layers=10, attention_s=1.0, experts_s=1.0)
DWDP_LAYER = costs(num_layers=10, attention_s=1.0, experts_s=1.0, peer_bytes=0.2)
STEP_S = 10 * 2.0


def test_equal_ranks_lose_only_the_exchanges():
    layer = costs(
        num_layers=10, attention_s=1.0, experts_s=1.0, barrier_s=0.1, exchange_s_per_token=1e-4
    )
    outcome = run(4, layer, strategy=DEP)
    assert outcome.makespan_s == pytest.approx(4 * (STEP_S + 10 * 2 * (0.1 + 1000 * 1e-4)))
    assert outcome.exposed_share == 0


def test_an_exchange_takes_as_long_as_its_busiest_rank():
    layer = costs(num_layers=10, exchange_s_per_token=1e-3)
    requests = [Request(0, 0.0, 200), Request(1, 0.0, 1000)]
    assert run(2, layer, requests, strategy=DEP).makespan_s == pytest.approx(10 * 2 * 1.0)


def test_a_slow_rank_slows_every_rank_of_expert_parallelism():
    outcome = run(4, LAYER, strategy=DEP, speeds=Speeds(slow={1: 0.5}))
    assert outcome.makespan_s == pytest.approx(2 * 4 * STEP_S)
    waits = [rank.exposed_s for rank in outcome.ranks]
    assert waits == pytest.approx([4 * STEP_S, 0, 4 * STEP_S, 4 * STEP_S])


def test_a_slow_rank_slows_no_other_rank_of_dwdp():
    usual = run(4, DWDP_LAYER)
    slowed = run(4, DWDP_LAYER, speeds=Speeds(slow={1: 0.5}))
    rates = [
        a.tokens_per_s / b.tokens_per_s for a, b in zip(slowed.ranks, usual.ranks, strict=True)
    ]
    assert rates == pytest.approx([1, 0.5, 1, 1], rel=1e-6)


def test_drifting_ranks_cost_expert_parallelism_more_than_dwdp():
    speeds = Speeds(drift=0.1, jitter=0.1)
    requests = full_steps(8 * 30)
    dep = run(8, LAYER, requests, strategy=DEP, speeds=speeds).tokens_per_s
    dwdp = run(8, DWDP_LAYER, requests, speeds=speeds).tokens_per_s
    steady = 8 * 1000 / STEP_S
    assert dep < 0.9 * steady
    assert dwdp > 0.95 * steady


def unequal() -> list[Request]:
    """In turn, prompts of 1000 tokens for rank 0, and of 250 tokens for ranks 1, 2 and 3."""
    return [Request(idx, 0.0, 250 if idx % 4 else 1000) for idx in range(32)]


def test_unequal_lengths_cost_expert_parallelism_and_not_dwdp():
    """Each step is one whole prompt. Ranks with short prompts wait for the one with long ones."""
    options = {"chunked_prefill": False, "max_num_batched_tokens": 250}
    layer = costs(num_layers=10, attention_s=1.0)
    dep = run(4, layer, unequal(), strategy=DEP, **options)
    dwdp = run(4, layer, unequal(), **options)
    assert [rank.tokens_per_s for rank in dep.ranks] == pytest.approx([100, 25, 25, 25])
    assert [rank.tokens_per_s for rank in dwdp.ranks] == pytest.approx([100] * 4)
    assert dep.exposed_share > 0.5
    assert dwdp.exposed_share == 0


def test_routing_skew_costs_expert_parallelism_and_not_dwdp():
    skewed = run(4, LAYER, strategy=DEP, routing_skew=0.3)
    assert skewed.makespan_s > 1.1 * run(4, LAYER, strategy=DEP).makespan_s
    assert run(4, DWDP_LAYER, routing_skew=0.3) == run(4, DWDP_LAYER)


def test_tokens_of_a_group_are_pooled_for_their_experts():
    """One rank has a prompt: its experts' work is divided by four, its attention is not."""
    outcome = run(4, LAYER, full_steps(1), strategy=DEP)
    assert outcome.makespan_s == pytest.approx(10 * (1.0 + 1.0 / 4))


def test_groups_of_expert_parallelism_do_not_wait_for_each_other():
    outcome = run(4, LAYER, strategy=DEP, dep_size=2, speeds=Speeds(slow={0: 0.5}))
    rates = [rank.tokens_per_s for rank in outcome.ranks]
    assert rates == pytest.approx([25, 25, 50, 50])


def test_an_idle_group_takes_a_prompt_up_when_it_comes():
    requests = [Request(0, 0.0, 1000), Request(1, 100.0, 1000)]
    outcome = run(2, LAYER, requests, strategy=DEP)
    assert outcome.makespan_s == pytest.approx(100 + 10 * 1.5)
    assert outcome.ttft_s.p99 == pytest.approx(10 * 1.5)
