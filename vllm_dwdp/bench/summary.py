# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Medians, spreads and ratios of what was measured."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vllm_dwdp.bench.recipe import DWDP
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
    DWDP divided by this arm's: the ratio of medians, and the lowest and the highest ratio of a
    round; None if DWDP wasn't measured. taken: the share of a core that the other process took.
    """

    arm: str
    variant: str
    rounds: list[float]
    tokens_per_s: Spread
    ttft_s: Spread
    itl_s: Spread | None
    dwdp_over: Spread | None
    taken: float
    cpu_seconds: dict[str, float]


def summaries(found: Measurements, variant: str) -> list[ArmSummary]:
    """Of all arms that were measured in this variant."""
    by_arm = found.of(variant)
    dwdp = by_arm.get(DWDP)
    return [_summary(found, ones, dwdp) for ones in by_arm.values()]


def _summary(
    found: Measurements, ones: Sequence[Measurement], dwdp: Sequence[Measurement] | None
) -> ArmSummary:
    arm, variant = ones[0].arm, ones[0].variant
    gaps = [one.served.itl_s for one in ones if one.served.itl_s is not None]
    return ArmSummary(
        arm=arm,
        variant=variant,
        rounds=_rates(ones),
        tokens_per_s=Spread.of(_rates(ones)),
        ttft_s=Spread.of([one.served.ttft_s for one in ones]),
        itl_s=Spread.of(gaps) if gaps else None,
        dwdp_over=_ratio(dwdp, ones) if dwdp else None,
        taken=statistics.median(one.taken for one in ones),
        cpu_seconds={title: round(s, 2) for title, s in found.cpu_seconds[arm, variant].items()},
    )


def _ratio(ones: Sequence[Measurement], others: Sequence[Measurement]) -> Spread:
    """Rounds that only one of the two has are left out of the lowest and the highest ratio."""
    of_other = {other.round: other.served.tokens_per_s for other in others}
    ratios = [
        one.served.tokens_per_s / of_other[one.round] for one in ones if one.round in of_other
    ]
    median = statistics.median(_rates(ones)) / statistics.median(_rates(others))
    return Spread(median, min(ratios), max(ratios))


def _rates(ones: Sequence[Measurement]) -> list[float]:
    return [one.served.tokens_per_s for one in ones]


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
