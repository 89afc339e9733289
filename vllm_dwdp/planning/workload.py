# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What one rank computes in one step: how many tokens, of prompts how long."""

import math
from dataclasses import dataclass

from vllm_dwdp.planning.errors import PlanError


@dataclass(frozen=True)
class Workload:
    """One step of prompts on one rank.

    tokens: in the step, on average. isl: tokens of the longest prompt. length_ratio: prompts have
    lengths drawn evenly from [length_ratio x isl, isl]; 1: all are equally long.
    is_chunked: prompts are cut so that every step has the same number of tokens (vLLM); else a
    step holds whole prompts (TensorRT-LLM in the paper).
    """

    tokens: float
    isl: int
    length_ratio: float = 1.0
    is_chunked: bool = True

    def __post_init__(self) -> None:
        if not (self.tokens > 0 and self.isl > 0 and 0 < self.length_ratio <= 1):
            raise PlanError(
                "expected tokens and a prompt length above 0 and a length ratio above 0 and at "
                f"most 1, got {self.tokens}, {self.isl} and {self.length_ratio}."
            )

    @classmethod
    def full(
        cls, max_tokens: int, isl: int, *, length_ratio: float = 1.0, is_chunked: bool = True
    ) -> "Workload":
        """A step with as many prompts as `max_tokens` allows."""
        mean = isl * (1 + length_ratio) / 2
        whole = max(1, math.floor(max_tokens / mean)) * mean
        tokens = max_tokens if is_chunked else min(max_tokens, whole)
        return cls(tokens, isl, length_ratio, is_chunked)

    @property
    def mean_length(self) -> float:
        return self.isl * self._moment(1)

    @property
    def num_prompts(self) -> float:
        """Prompts in the step; a part of one counts as a part."""
        return self.tokens / self.mean_length

    def pairs(self, window: int | None = None) -> float:
        """Pairs of a token and one before it that the step's attention looks at.

        window: how many tokens back a layer looks; None: all. Parts of prompts count as their
        share of the whole prompt's pairs.
        """
        mean = self.mean_length
        if window is not None and window < mean:
            return self.num_prompts * (window * mean - window**2 / 2)
        return self.num_prompts * self.isl**2 * self._moment(2) / 2

    @property
    def spread_of_tokens(self) -> float:
        """Standard deviation between ranks of the tokens in a step, as a share of the mean."""
        return 0.0 if self.is_chunked else self._spread(1)

    @property
    def spread_of_pairs(self) -> float:
        """Standard deviation between ranks of the pairs in a step, as a share of the mean."""
        return self._spread(2)

    def _moment(self, power: int) -> float:
        """Mean of (length / isl) ** power for lengths drawn evenly from [length_ratio, 1]."""
        return sum(self.length_ratio**i for i in range(power + 1)) / (power + 1)

    def _spread(self, power: int) -> float:
        relative = self._moment(2 * power) / self._moment(power) ** 2 - 1
        return math.sqrt(max(0.0, relative) / max(1.0, self.num_prompts))
