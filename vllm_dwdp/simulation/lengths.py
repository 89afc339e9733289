# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How many tokens prompts have: the distributions that a scenario may name."""

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.dataclasses import dataclass

from vllm_dwdp.simulation.section import SECTION

Tokens = npt.NDArray[np.int64]
Count = Annotated[int, Field(ge=1, le=100_000_000)]


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Constant:
    """Every prompt has `tokens` tokens."""

    kind: Literal["constant"]
    tokens: Count

    def draw(self, rng: np.random.Generator, size: int) -> Tokens:
        return np.full(size, self.tokens)


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Uniform:
    """All lengths from `least_share` x `tokens` to `tokens` are equally likely.

    The paper calls this share the ratio of input lengths.
    """

    kind: Literal["uniform"]
    tokens: Count
    least_share: float = Field(gt=0, le=1)

    def draw(self, rng: np.random.Generator, size: int) -> Tokens:
        least = max(1, round(self.least_share * self.tokens))
        return rng.integers(least, self.tokens, size, endpoint=True)


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Lognormal:
    """Half of the prompts are longer than `median_tokens`; none is longer than `most_tokens`.

    sigma: standard deviation of the logarithm.
    """

    kind: Literal["lognormal"]
    median_tokens: Count
    sigma: float = Field(gt=0, le=5)
    most_tokens: Count

    def draw(self, rng: np.random.Generator, size: int) -> Tokens:
        return _cut(rng.lognormal(np.log(self.median_tokens), self.sigma, size), self.most_tokens)


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Pareto:
    """A share of (least_tokens / x)^alpha of all prompts is longer than x, up to `most_tokens`."""

    kind: Literal["pareto"]
    least_tokens: Count
    alpha: float = Field(gt=0, le=50)
    most_tokens: Count

    def draw(self, rng: np.random.Generator, size: int) -> Tokens:
        return _cut(self.least_tokens * (1 + rng.pareto(self.alpha, size)), self.most_tokens)


def _cut(lengths: npt.NDArray[np.float64], most: int) -> Tokens:
    return np.clip(np.rint(lengths), 1, most).astype(np.int64)


Lengths = Annotated[Constant | Uniform | Lognormal | Pareto, Field(discriminator="kind")]
