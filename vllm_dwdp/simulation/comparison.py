# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The outcomes of a file's variants side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_dwdp.simulation.outcome import Outcome
from vllm_dwdp.simulation.scenario import Strategy
from vllm_dwdp.simulation.scenario_file import Variant
from vllm_dwdp.simulation.simulate import simulate


@dataclass(frozen=True)
class Comparison:
    """One variant beside the first variant that is expert parallelism.

    over_dep: tokens per second, divided by those of expert parallelism; None if no variant is.
    """

    name: str
    seed: int
    over_dep: float | None
    outcome: Outcome


def compare(variants: Sequence[Variant]) -> Sequence[Comparison]:
    """Simulate each variant."""
    outcomes = [simulate(variant.scenario, variant.requests) for variant in variants]
    dep = next((one for one in outcomes if one.strategy is Strategy.DEP), None)
    return [
        Comparison(
            variant.name,
            variant.scenario.seed,
            outcome.tokens_per_s / dep.tokens_per_s if dep else None,
            outcome,
        )
        for variant, outcome in zip(variants, outcomes, strict=True)
    ]
