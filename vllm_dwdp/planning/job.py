# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a slow rank costs a job of DWDP, whose ranks take prompts as they get free."""

from dataclasses import dataclass

from vllm_dwdp.planning.errors import PlanError


@dataclass(frozen=True)
class Job:
    """slowest: speed of the slowest rank; 0.5: half as fast as the others.

    num_prompts: the prompts after which the job ends; None: it goes on. max_in_flight: prompts that
    a rank holds at a time; by default as many as with vllm_dwdp.LLM.
    """

    slowest: float = 1.0
    num_prompts: int | None = None
    max_in_flight: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.slowest <= 1:
            raise PlanError(f"expected --slowest above 0 and at most 1, got {self.slowest}.")
        for name, number in (
            ("job-prompts", self.num_prompts),
            ("max-in-flight", self.max_in_flight),
        ):
            if number is not None and number < 1:
                raise PlanError(f"expected --{name} of at least 1, got {number}.")

    def mean_speed(self, ranks: int) -> float:
        """The mean speed of the ranks over the whole job; 1: as fast as one that isn't slow.

        When the last prompt is handed out all ranks hold equally many. The slow one takes longest
        to work off its own, and the job ends with it.
        """
        together = ranks - 1 + self.slowest
        if self.num_prompts is None:
            return together / ranks
        held = min(self.max_in_flight, self.num_prompts / ranks)
        until_last = (self.num_prompts - ranks * held) / together
        return self.num_prompts / ranks / (until_last + held / self.slowest)


ENDLESS = Job()
"""A job that goes on, of ranks that are equally fast."""
