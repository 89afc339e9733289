# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Simulates what was planned: DWDP and expert parallelism, with the same prompts.

* Copies are those of this project (docs/scheduler.md): one slice at a time, each from the next
  peer. Slices are simulated for GPUs in small groups. Otherwise a pull is all that a rank lacks of
  one peer, which comes to the same if a rank has only one pull at a time.
* In a mesh, where each pair of ranks has its own link, a rank reads all its peers at once. That is
  what the planner expects; one slice at a time would leave all links but one idle.
* Ranks of DWDP start within two layers of each other, so that their copies meet as they would after
  a while.
"""

from dataclasses import dataclass

from vllm_dwdp.layout.copies import gpu_slice_bytes
from vllm_dwdp.planning.dwdp_step import DwdpLayer, dwdp_layer
from vllm_dwdp.planning.errors import PlanError
from vllm_dwdp.planning.hardware import Hardware
from vllm_dwdp.planning.implementation import VLLM_DWDP
from vllm_dwdp.planning.prompts import Prompts
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.request import Request
from vllm_dwdp.planning.skew import rank_load_spread
from vllm_dwdp.planning.spread import spread_experts
from vllm_dwdp.simulation.dispatch import Dispatch
from vllm_dwdp.simulation.lengths import Uniform
from vllm_dwdp.simulation.outcome import Outcome
from vllm_dwdp.simulation.planned import PlannedCosts
from vllm_dwdp.simulation.scenario import Scenario, Strategy
from vllm_dwdp.simulation.sections import MIB, Copies, Pulls
from vllm_dwdp.simulation.simulate import simulate
from vllm_dwdp.simulation.speeds import Speeds
from vllm_dwdp.simulation.workload import AtOnce, Poisson, Workload

MOST_SLICED_RANKS = 8
"""Larger groups have so many slices that simulating them takes minutes."""


@dataclass(frozen=True)
class PlannedRun:
    """The outcomes of both strategies with the same prompts."""

    prompts: Prompts
    dwdp: Outcome
    expert_parallel: Outcome

    @property
    def dwdp_over_expert_parallel(self) -> float:
        return self.dwdp.tokens_per_s / self.expert_parallel.tokens_per_s


def simulate_plan(request: Request, prompts: Prompts) -> PlannedRun:
    """Raises PlanError for steps that DWDP would fetch in a way that isn't simulated."""
    costs = _costs(request, 1)
    workload = _workload(request, prompts)
    drawn = workload.draw(prompts.seed)

    def run(strategy: Strategy, costs: PlannedCosts, start_within_s: float) -> Outcome:
        scenario = _scenario(request, workload, strategy, costs, start_within_s)
        return simulate(scenario, drawn, costs)

    dwdp = run(Strategy.DWDP, costs, 2 * _prefetching_layer(request, costs).total)
    others = _costs(request, request.dwdp_size)
    return PlannedRun(prompts, dwdp, run(Strategy.DEP, others, 0.0))


def planned_copies(hardware: Hardware, costs: PlannedCosts) -> Copies:
    """How ranks of this project pull experts."""
    if hardware.peer_link is not None:
        return Copies(pulls=Pulls.SPREAD)
    if hardware.kind == "gpu" and costs.spread.num_ranks <= MOST_SLICED_RANKS:
        slice_mib = gpu_slice_bytes(round(costs.peer_bytes)) / MIB
        return Copies(pulls=Pulls.SLICES, slice_mib=slice_mib)
    return Copies(pulls=Pulls.WHOLE)


def _costs(request: Request, expert_ranks: int) -> PlannedCosts:
    rates = Rates.achieved(request.hardware, request.dwdp_size)
    spread = spread_experts(request.model, request.dwdp_size, request.num_experts_per_worker)
    return PlannedCosts(request.model, rates, spread, VLLM_DWDP, expert_ranks)


def _prefetching_layer(request: Request, costs: PlannedCosts) -> DwdpLayer:
    """The planner's layer; PlanError if it would fetch only the chosen experts."""
    layer = dwdp_layer(costs.model, costs.rates, request.work(), costs.spread, VLLM_DWDP)
    if not layer.copies_all:
        raise PlanError(
            "expected steps for --simulate that copy all missing experts, got steps of "
            f"{request.work().tokens:.0f} tokens, which would copy only those that they choose; "
            "ask for larger steps."
        )
    return layer


def _workload(request: Request, prompts: Prompts) -> Workload:
    at_once = AtOnce(kind="at_once")
    arrivals = Poisson(kind="poisson", per_s=prompts.per_s) if prompts.per_s else at_once
    lengths = Uniform(kind="uniform", tokens=request.isl, least_share=request.length_ratio)
    return Workload(
        num_requests=prompts.number_for(request),
        lengths=lengths,
        arrivals=arrivals,
        dispatch=Dispatch.PENDING_TOKENS,
    )


def _scenario(
    request: Request,
    workload: Workload,
    strategy: Strategy,
    costs: PlannedCosts,
    start_within_s: float,
) -> Scenario:
    return Scenario(
        workload=workload,
        ranks=request.dwdp_size,
        max_num_batched_tokens=max(1, round(request.work().tokens)),
        strategy=strategy,
        copies=planned_copies(request.hardware, costs),
        speeds=Speeds(slow={0: request.job.slowest}),
        routing_skew=rank_load_spread(request.model, request.dwdp_size),
        start_within_s=start_within_s,
    )
