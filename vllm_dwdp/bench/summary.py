# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Medians, spreads and ratios of what was measured."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vllm_dwdp.bench.arms import DWDP
from vllm_dwdp.bench.rounds import Measurement, Measurements


@dataclass(frozen=True)
class Spread:
    """The median of some figures, and the lowest and the highest one."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        return cls(statistics.median(figures), min(figures), max(figures))


@dataclass(frozen=True)
class ArmSummary:
    """One arm in one variant, over all rounds.

    tokens_per_s: of prompts and answers. ttft_s: medians of the time to the first token, by round.
    itl_s: the same of the time between tokens, None if answers have one. dwdp_over: tokens/s of
    DWDP divided by this arm's, in the rounds that both have: the ratio of medians, and the lowest
    and the highest ratio of a round; None if there is no such round. core_share: the median share
    of a core that the other process took; None as in Measurement.
    """

    arm: str
    variant: str
    rounds: list[float]
    tokens_per_s: Spread
    ttft_s: Spread
    itl_s: Spread | None
    dwdp_over: Spread | None
    core_share: float | None
    cpu_seconds: dict[str, float]


def summaries(found: Measurements, variant: str) -> list[ArmSummary]:
    """A summary of each arm that was measured in this variant."""
    by_arm = found.of(variant)
    dwdp = by_arm.get(DWDP, [])
    return [_summary(found, measured, dwdp) for measured in by_arm.values()]


def _summary(
    found: Measurements, measured: Sequence[Measurement], dwdp: Sequence[Measurement]
) -> ArmSummary:
    arm, variant = measured[0].arm, measured[0].variant
    rates = [one.served.tokens_per_s for one in measured]
    gaps = [one.served.itl_s for one in measured if one.served.itl_s is not None]
    shares = [one.core_share for one in measured if one.core_share is not None]
    return ArmSummary(
        arm=arm,
        variant=variant,
        rounds=rates,
        tokens_per_s=Spread.of(rates),
        ttft_s=Spread.of([one.served.ttft_s for one in measured]),
        itl_s=Spread.of(gaps) if gaps else None,
        dwdp_over=_ratio(dwdp, measured),
        core_share=statistics.median(shares) if shares else None,
        cpu_seconds={title: round(s, 2) for title, s in found.cpu_seconds[arm, variant].items()},
    )


def _ratio(dwdp: Sequence[Measurement], others: Sequence[Measurement]) -> Spread | None:
    """The ratio of DWDP to another arm, over the rounds that both have."""
    of_dwdp = {one.round: one.served.tokens_per_s for one in dwdp}
    of_other = {one.round: one.served.tokens_per_s for one in others}
    if not (common := of_dwdp.keys() & of_other.keys()):
        return None
    ratios = [of_dwdp[number] / of_other[number] for number in common]
    medians = [statistics.median(rates[n] for n in common) for rates in (of_dwdp, of_other)]
    return Spread(medians[0] / medians[1], min(ratios), max(ratios))


def to_json(found: Measurements, variants: Sequence[str]) -> dict[str, Any]:
    """Memory by arm, and the summaries by variant and arm."""
    return {
        "memory_bytes": {arm: asdict(use) for arm, use in found.memory.items()},
        "variants": {
            variant: {one.arm: _rounded(asdict(one)) for one in summaries(found, variant)}
            for variant in variants
        },
    }


def _rounded(value: Any) -> Any:
    """The value with all numbers in it rounded to five digits."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
