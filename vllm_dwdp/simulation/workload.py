# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The prompts of a scenario: how many, how long, when they arrive."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.dataclasses import dataclass

from vllm_dwdp.simulation.chunk import Request
from vllm_dwdp.simulation.dispatch import Dispatch
from vllm_dwdp.simulation.lengths import Lengths
from vllm_dwdp.simulation.section import SECTION
from vllm_dwdp.simulation.streams import Stream, generator


@dataclass(frozen=True, kw_only=True, config=SECTION)
class AtOnce:
    """All prompts are there at the start, as in an offline job."""

    kind: Literal["at_once"]

    def draw(self, rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
        return np.zeros(size)


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Poisson:
    """Prompts arrive independently of each other, `per_s` of them in a second on average."""

    kind: Literal["poisson"]
    per_s: float = Field(gt=0)

    def draw(self, rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
        return np.cumsum(rng.exponential(1 / self.per_s, size))


Arrivals = Annotated[AtOnce | Poisson, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Workload:
    """Either `num_requests` with `lengths` and `arrivals`, or a `trace` file.

    trace: a path, seen from the folder of the scenario file; see trace.read_trace.
    """

    num_requests: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    lengths: Lengths | None = None
    arrivals: Arrivals | None = None
    trace: str | None = None
    dispatch: Dispatch = Dispatch.ROUND_ROBIN

    def __post_init__(self) -> None:
        drawn = (self.num_requests, self.lengths, self.arrivals)
        is_complete = None not in drawn if self.trace is None else drawn == (None, None, None)
        if not is_complete:
            raise ValueError("give either num_requests, lengths and arrivals, or only trace")

    def draw(self, seed: int) -> Sequence[Request]:
        """The prompts, by time of arrival. Only for a workload without a trace."""
        assert self.num_requests and self.lengths and self.arrivals, "a trace is read from its file"
        lengths = self.lengths.draw(generator(seed, Stream.LENGTHS), self.num_requests)
        times = self.arrivals.draw(generator(seed, Stream.ARRIVALS), self.num_requests)
        both = zip(times.tolist(), lengths.tolist(), strict=True)
        return [Request(idx, time, tokens) for idx, (time, tokens) in enumerate(both)]
