# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How many ranks read one source at the same time, and what that does to copies."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vllm_dwdp.planning.errors import PlanError

_NUM_COPIES = 20_000
"""Copies that are drawn. Other random numbers change what a layer takes by less than 1 %."""


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


def draw_copies(alone_s: float, num_ranks: int, busy_share: float) -> list[float]:
    """Seconds of many copies of one rank, one after another; always the same for these arguments.

    alone_s: seconds of a copy that meets no rivals. busy_share: the part of their time in which
    ranks copy.

    A copy reads a share from each of num_ranks - 1 peers. Each of the other num_ranks - 2 ranks
    reads the same peer with probability busy_share / (num_ranks - 1); Table 2 of the paper has a
    busy_share of 1. Shares are drawn independently.
    """
    num_peers = num_ranks - 1
    met = np.random.default_rng(0).binomial(
        num_peers * (num_ranks - 2), busy_share / num_peers, _NUM_COPIES
    )
    return [alone_s * (1 + rivals / num_peers) for rivals in met.tolist()]
