# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Small simulations for tests: one place that knows how a scenario and its costs are made."""

from vllm_dwdp.simulation.chunk import Request
from vllm_dwdp.simulation.costs import LayerCosts
from vllm_dwdp.simulation.dispatch import Dispatch
from vllm_dwdp.simulation.outcome import Outcome
from vllm_dwdp.simulation.pull_order import Order
from vllm_dwdp.simulation.scenario import Scenario, Strategy
from vllm_dwdp.simulation.sections import Copies, Pulls
from vllm_dwdp.simulation.simulate import simulate
from vllm_dwdp.simulation.workload import Workload

DEP = Strategy.DEP
WHOLE_SAME = Copies(pulls=Pulls.WHOLE, order=Order.SAME)
WHOLE_ROTATED = Copies(pulls=Pulls.WHOLE, order=Order.ROTATED)
WHOLE_SHUFFLED = Copies(pulls=Pulls.WHOLE, order=Order.SHUFFLED)
TOKENS = 1000
"""Tokens of a full step of these simulations."""


def costs(
    *,
    num_layers: int = 4,
    attention_s: float = 0.0,
    experts_s: float = 0.0,
    peer_bytes: float = 0.0,
    egress: float = 1.0,
    **others: float,
) -> LayerCosts:
    """Costs by the seconds of a full step's layer. A rank receives 1 byte per second."""
    return LayerCosts(
        num_layers=num_layers,
        peer_bytes=peer_bytes,
        ingress_bytes_per_s=1.0,
        egress_bytes_per_s=egress,
        attention_s_per_token=attention_s / TOKENS,
        experts_s_per_token=experts_s / TOKENS,
        **others,
    )


def scenario(
    ranks: int = 1, dispatch: Dispatch = Dispatch.ROUND_ROBIN, **options: object
) -> Scenario:
    options = {"max_num_batched_tokens": TOKENS, **options}
    return Scenario(workload=Workload(trace="none", dispatch=dispatch), ranks=ranks, **options)


def full_steps(number: int) -> list[Request]:
    """Prompts that fill a step each, all there at the start."""
    return [Request(idx, 0.0, TOKENS) for idx in range(number)]


def run(
    ranks: int, layer: LayerCosts, requests: list[Request] | None = None, **options: object
) -> Outcome:
    """Simulate; by default each rank has four full steps to do."""
    return simulate(scenario(ranks, **options), requests or full_steps(4 * ranks), layer)
