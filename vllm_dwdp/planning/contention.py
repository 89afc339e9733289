# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How many ranks read one source at the same time, and what that does to copies."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_dwdp.planning.errors import PlanError


@dataclass(frozen=True)
class Contention:
    """percentages[k]: how likely, in percent, a rank has k rivals at the source that it reads."""

    dwdp_size: int
    percentages: tuple[float, ...]

    @property
    def mean_rivals(self) -> float:
        return sum(k * percent for k, percent in enumerate(self.percentages)) / 100


def contention(dwdp_size: int) -> Contention:
    """The distribution of rivals when all ranks copy, each from a random peer: paper, Table 2.

    Each of the dwdp_size - 2 other ranks reads the same source with probability
    1 / (dwdp_size - 1), so the number of rivals is binomial. Raises PlanError below 2 ranks.
    """
    if dwdp_size < 2:
        raise PlanError(f"expected a dwdp_size of at least 2 for contention, got {dwdp_size}.")
    return Contention(dwdp_size, tuple(_binomial(dwdp_size - 2, 1 / (dwdp_size - 1))))


def _binomial(count: int, hit: float) -> Iterator[float]:
    """Percentages of 0 to `count` hits. Each follows from the one before, so none overflows."""
    percent = 100 * (1 - hit) ** count
    for k in range(count + 1):
        yield percent
        percent *= (count - k) / (k + 1) * hit / (1 - hit or 1)


def mean_rivals(dwdp_size: int) -> float:
    """Expected rivals at a source while all ranks copy; 0 for groups of one or two ranks."""
    return (dwdp_size - 2) / (dwdp_size - 1) if dwdp_size > 2 else 0.0
