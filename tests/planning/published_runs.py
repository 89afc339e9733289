# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Simulations of the paper's settings: DeepSeek-R1 on four GPUs of a GB200."""

from planning.cases import R1, R1_RATES, R1_SPREAD

from vllm_dwdp.planning.implementation import Implementation
from vllm_dwdp.planning.skew import rank_load_spread
from vllm_dwdp.planning.workload import Workload as Step
from vllm_dwdp.simulation.lengths import Uniform
from vllm_dwdp.simulation.outcome import Outcome
from vllm_dwdp.simulation.planned import PlannedCosts
from vllm_dwdp.simulation.pull_order import Order
from vllm_dwdp.simulation.scenario import Scenario, Strategy
from vllm_dwdp.simulation.sections import Copies, Pulls
from vllm_dwdp.simulation.simulate import simulate
from vllm_dwdp.simulation.workload import AtOnce, Workload

STEPS, RANKS = 40, 4


def both(max_tokens: int, isl: int, ratio: float, how: Implementation) -> tuple[Outcome, Outcome]:
    """DWDP as `how` does it, and expert parallelism.

    Steps hold whole prompts. Slices of 1 MB are simulated as their limit, `spread`, which has no
    order of peers. Without slices all ranks read their peers in ascending order, as
    DwdpManager._prefetch_layer_default of TensorRT-LLM does (published.yaml).
    """
    prompts = Step.full(max_tokens, isl, length_ratio=ratio, is_chunked=False).num_prompts
    lengths = Uniform(kind="uniform", tokens=isl, least_share=ratio)
    pulls = Pulls.SPREAD if how.reads_peers_at_once else Pulls.WHOLE
    workload = Workload(
        num_requests=int(STEPS * RANKS * prompts), lengths=lengths, arrivals=AtOnce(kind="at_once")
    )

    def run(strategy: Strategy, costs: PlannedCosts) -> Outcome:
        scenario = Scenario(
            workload=workload,
            ranks=RANKS,
            max_num_batched_tokens=max_tokens,
            strategy=strategy,
            chunked_prefill=False,
            copies=Copies(pulls=pulls, order=Order.SAME),
            routing_skew=rank_load_spread(R1, RANKS),
            start_within_s=0.05,
        )
        return simulate(scenario, workload.draw(0), costs)

    dwdp = PlannedCosts(R1, R1_RATES, R1_SPREAD, how)
    return run(Strategy.DWDP, dwdp), run(
        Strategy.DEP, PlannedCosts(R1, R1_RATES, R1_SPREAD, how, RANKS)
    )
