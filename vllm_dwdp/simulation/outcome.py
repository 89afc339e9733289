# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a simulation found. Times are in seconds, bandwidths in bytes per second."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vllm_dwdp.simulation.scenario import Strategy
from vllm_dwdp.simulation.tally import Tally


class Percentiles(NamedTuple):
    """Half, nine tenths and 99 of 100 values are at most as large as these."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Percentiles | None":
        return cls(*np.percentile(values, [50, 90, 99]).tolist()) if values else None


@dataclass(frozen=True)
class RankOutcome:
    """What one rank did.

    tokens_per_s: its tokens, divided by the time from its first step's start to its last one's end.
    busy_s: seconds in steps, dummy steps included.
    exposed_s: of these, seconds of waiting: for experts (DWDP) or for other ranks (DEP).
    ttft_s: time from a prompt's arrival to the end of its last step; None: it served no prompt.
    copy_bytes_per_s: bytes fetched, divided by the seconds in which a copy was under way.
    """

    rank: int
    steps: int
    tokens: int
    tokens_per_s: float
    busy_s: float
    exposed_s: float
    ttft_s: Percentiles | None
    bytes_fetched: float = 0.0
    copy_bytes_per_s: float = 0.0

    @classmethod
    def of(
        cls, rank: int, tally: Tally, bytes_fetched: float = 0.0, copy_s: float = 0.0
    ) -> "RankOutcome":
        return cls(
            rank=rank,
            steps=tally.steps,
            tokens=tally.tokens,
            tokens_per_s=_rate(tally.tokens, tally.last_s - (tally.first_s or 0.0)),
            busy_s=tally.busy_s,
            exposed_s=tally.exposed_s,
            ttft_s=Percentiles.of(tally.ttft_s),
            bytes_fetched=bytes_fetched,
            copy_bytes_per_s=_rate(bytes_fetched, copy_s),
        )


@dataclass(frozen=True)
class Outcome:
    """What all ranks did.

    tokens_per_s: the sum of the ranks' rates. A rank that has run out of prompts doesn't lower it,
        as it would lower the tokens divided by `makespan_s`, the time until the last prompt ended.
    exposed_share: the part of all busy seconds in which ranks waited.
    rivals: the share of a pull's time with 0, 1, 2, ... rivals at its source; empty where copies
        have no pulls that could meet (`spread`, expert parallelism, one rank).
    """

    strategy: Strategy
    num_requests: int
    tokens: int
    makespan_s: float
    tokens_per_s: float
    exposed_share: float
    ttft_s: Percentiles | None
    rivals: Sequence[float]
    ranks: Sequence[RankOutcome]

    @classmethod
    def of(
        cls,
        strategy: Strategy,
        tallies: Sequence[Tally],
        ranks: Sequence[RankOutcome],
        rivals: Sequence[float] = (),
    ) -> "Outcome":
        ttft_s = [seconds for tally in tallies for seconds in tally.ttft_s]
        return cls(
            strategy=strategy,
            num_requests=len(ttft_s),
            tokens=sum(rank.tokens for rank in ranks),
            makespan_s=max(tally.last_s for tally in tallies),
            tokens_per_s=sum(rank.tokens_per_s for rank in ranks),
            exposed_share=_rate(sum(r.exposed_s for r in ranks), sum(r.busy_s for r in ranks)),
            ttft_s=Percentiles.of(ttft_s),
            rivals=tuple(rivals),
            ranks=tuple(ranks),
        )


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
