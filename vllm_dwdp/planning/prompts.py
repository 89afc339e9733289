# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The prompts that a plan is simulated with."""

import math
from dataclasses import dataclass

from vllm_dwdp.planning.errors import PlanError
from vllm_dwdp.planning.request import Request

MOST_STEPS = 8
"""Steps of a rank by default: enough to see waits, and few enough to end in seconds."""

RANK_STEPS = 128
"""Steps of all ranks together by default, so that many ranks do fewer steps each."""

LEAST_STEPS = 2

LAST_STEP = 7 / 8
"""How full the last step is on average: if it were full, a few tokens of some ranks would need a
step of their own, which has nothing to hide its copies under."""


@dataclass(frozen=True)
class Prompts:
    """How many prompts there are, and when they come. Their lengths are those of the plan.

    number: None for a few steps of each rank. per_s: prompts that arrive in a second, on average;
    None: all are there at the start.
    """

    seed: int = 0
    number: int | None = None
    per_s: float | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise PlanError(f"expected --seed of at least 0, got {self.seed}.")
        if self.number is not None and self.number < 1:
            raise PlanError(f"expected --num-prompts of at least 1, got {self.number}.")
        if self.per_s is not None and not 0 < self.per_s < math.inf:
            raise PlanError(f"expected --arrivals-per-s above 0, got {self.per_s}.")

    def number_for(self, request: Request) -> int:
        """The number that was given, or one that fills a few steps of each rank."""
        steps = max(LEAST_STEPS, min(MOST_STEPS, RANK_STEPS // request.dwdp_size)) - 1 + LAST_STEP
        return self.number or math.ceil(steps * request.dwdp_size * request.work().num_prompts)
