# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The simulator with the planner's costs, beside the planner, where both must agree."""

import pytest
from planning.cases import GB200, R1, R1_RATES, R1_SPREAD

from vllm_dwdp.planning import constants
from vllm_dwdp.planning.hardware import read_hardware
from vllm_dwdp.planning.model_config import read_model
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.roofline import layer_seconds
from vllm_dwdp.planning.skew import excess_load, rank_load_spread, waiting_seconds
from vllm_dwdp.planning.spread import spread_experts
from vllm_dwdp.planning.throughput import throughput
from vllm_dwdp.planning.workload import Workload as Step
from vllm_dwdp.simulation.chunk import Chunk, Piece, Request
from vllm_dwdp.simulation.lengths import Uniform
from vllm_dwdp.simulation.outcome import Outcome
from vllm_dwdp.simulation.planned import WITHOUT_RIVALS, ChunkLoad, PlannedCosts
from vllm_dwdp.simulation.scenario import Scenario, Strategy
from vllm_dwdp.simulation.simulate import simulate
from vllm_dwdp.simulation.workload import AtOnce, Workload

GPT_OSS, MIXTRAL = read_model("gpt-oss-120b"), read_model("mixtral-8x7b")


def run(
    costs: PlannedCosts,
    *,
    tokens: int,
    isl: int,
    ratio: float = 1.0,
    steps: int = 20,
    skew: float = 0.0,
) -> Outcome:
    """Copies that never meet, and steps of `tokens` tokens."""
    ranks = costs.spread.num_ranks
    mean = isl * (1 + ratio) / 2
    workload = Workload(
        num_requests=int(steps * ranks * tokens / mean),
        lengths=Uniform(kind="uniform", tokens=isl, least_share=ratio),
        arrivals=AtOnce(kind="at_once"),
    )
    scenario = Scenario(
        workload=workload,
        ranks=ranks,
        max_num_batched_tokens=tokens,
        strategy=Strategy.DEP if costs.expert_ranks > 1 else Strategy.DWDP,
        routing_skew=skew,
    )
    return simulate(scenario, workload.draw(0), costs)


def of_ranks(model, hardware, ranks: int, expert_ranks: int) -> PlannedCosts:
    spread = spread_experts(model, ranks)
    return PlannedCosts(
        model, Rates.achieved(hardware, ranks), spread, WITHOUT_RIVALS, expert_ranks
    )


CASES = [
    (R1, "gb200", 4, 32768, 8192),  # computation covers the copies
    (R1, "gb200", 4, 16384, 1024),
    (R1, "gb200", 4, 8192, 8192),  # copies take longer than computation
    (R1, "gb200", 4, 4096, 4096),
    (R1, "mi355x", 8, 8192, 8192),  # a mesh
    (GPT_OSS, "b200", 4, 16384, 4096),  # layers with a sliding window
    (MIXTRAL, "cpu-two-socket", 2, 4096, 1024),  # peers' memory is read in place
]


@pytest.mark.parametrize(("model", "name", "ranks", "tokens", "isl"), CASES)
def test_without_contention_and_skew_the_simulator_agrees_with_the_planner(
    model, name, ranks, tokens, isl, monkeypatch
):
    monkeypatch.setattr(constants, "EXPERT_LOAD_CORRELATION", 0.0)
    hardware = read_hardware(name)
    dwdp, dep = (of_ranks(model, hardware, ranks, spread_over) for spread_over in (1, ranks))
    work = Step(tokens, isl)
    expected = throughput(model, dwdp.rates, work, dwdp.spread, WITHOUT_RIVALS)
    found = [run(costs, tokens=tokens, isl=isl).tokens_per_s / ranks for costs in (dwdp, dep)]
    assert found == pytest.approx([expected.dwdp, expected.expert_parallel], rel=0.02)


@pytest.mark.parametrize(("ratio", "tolerance"), [(0.8, 0.12), (0.5, 0.35)])
@pytest.mark.parametrize("ranks", [4, 8])
def test_waits_for_longer_prompts_are_about_those_of_the_planner(
    ratio, tolerance, ranks, monkeypatch
):
    """The planner takes a fixed number of prompts in a step. A step that is filled to the last
    token has fewer prompts if they are longer, which evens out its pairs."""
    monkeypatch.setattr(constants, "EXPERT_LOAD_CORRELATION", 0.0)
    costs, work = of_ranks(R1, GB200, ranks, ranks), Step(32768, 8192, ratio)
    moe, dense = (layer_seconds(R1, costs.rates, work, is_moe=is_moe) for is_moe in (True, False))
    expected = R1.num_moe_layers * waiting_seconds(R1, moe, work, ranks)
    expected += R1.num_dense_layers * waiting_seconds(R1, dense, work, ranks, is_moe=False)
    found = waits_per_step(run(costs, tokens=32768, isl=8192, ratio=ratio, steps=100))
    assert found == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("ranks", "tolerance"), [(4, 0.06), (8, 0.2)])
def test_waits_for_fuller_experts_are_about_those_of_the_planner(ranks, tolerance):
    """The simulator's loads are lognormal, the planner's normal: the largest of many is larger."""
    costs = of_ranks(R1, GB200, ranks, ranks)
    expected = excess_load(R1, ranks) * R1.num_moe_layers * costs.experts_s(32768)
    skew = rank_load_spread(R1, ranks)
    found = waits_per_step(run(costs, tokens=32768, isl=8192, skew=skew, steps=20))
    assert found == pytest.approx(expected, rel=tolerance)


def waits_per_step(outcome: Outcome) -> float:
    ranks = outcome.ranks
    return sum(rank.exposed_s for rank in ranks) / sum(rank.steps for rank in ranks)


@pytest.mark.parametrize("window", [None, 1, 100, 1000, 5000])
def test_pieces_of_a_prompt_have_as_many_pairs_as_the_whole(window):
    prompt = Request(0, 0.0, 3000)
    pieces = [Piece(prompt, start, 1000) for start in (0, 1000, 2000)]
    whole = Chunk((Piece(prompt, 0, 3000),))
    assert sum(Chunk((piece,)).num_pairs(window) for piece in pieces) == whole.num_pairs(window)
    assert whole.num_pairs(window) == sum(min(n, window or n) for n in range(1, 3001))


def test_a_chunk_of_whole_prompts_costs_what_the_planner_says():
    prompts = [Request(idx, 0.0, 8192) for idx in range(4)]
    chunk = Chunk(tuple(Piece(prompt, 0, 8192) for prompt in prompts))
    costs = PlannedCosts(R1, R1_RATES, R1_SPREAD, WITHOUT_RIVALS)
    layer = layer_seconds(R1, R1_RATES, Step(32768, 8192))
    assert layer_seconds(R1, R1_RATES, ChunkLoad(chunk)).total == pytest.approx(layer.total, 1e-3)
    assert costs.attention_s(chunk) == pytest.approx(layer.before_experts, 1e-3)
    assert costs.experts_s(chunk.num_tokens) == pytest.approx(layer.experts)


def test_few_tokens_of_expert_parallelism_read_only_the_ranks_own_experts():
    alone, shared = PlannedCosts(R1, R1_RATES, R1_SPREAD, WITHOUT_RIVALS), of_ranks(R1, GB200, 4, 4)
    assert alone.experts_s(4) > 1.1 * shared.experts_s(4)
    assert alone.experts_s(32768) == pytest.approx(shared.experts_s(32768))
