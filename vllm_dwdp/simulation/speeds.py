# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ranks that differ in speed, and ranks whose speed changes."""

import math

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.dataclasses import dataclass

from vllm_dwdp.simulation.section import SECTION

Factors = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Speeds:
    """How many times as long as normal a rank computes. All variations have a mean of 1.

    slow: by number of a rank, its speed; 0.5 computes twice as long.
    spread: variation between ranks, which stays for the whole run (standard deviation).
    drift: variation of a rank from step to step, in a walk that comes back to normal (standard
        deviation).
    drift_steps: steps after which a drifting rank has forgotten about two thirds of its deviation.
    jitter: variation from layer to layer, each apart from all others (standard deviation).
    """

    slow: dict[int, float] = Field(default_factory=dict)
    spread: float = Field(default=0.0, ge=0, le=2)
    drift: float = Field(default=0.0, ge=0, le=2)
    drift_steps: float = Field(default=20.0, gt=0)
    jitter: float = Field(default=0.0, ge=0, le=2)

    def __post_init__(self) -> None:
        if bad := {rank: speed for rank, speed in self.slow.items() if not speed > 0 or rank < 0}:
            raise ValueError(f"give the speed, above 0, of ranks from 0 on, got {bad}")


class Pace:
    """The speed of one rank, step by step."""

    def __init__(
        self, speeds: Speeds, *, rank: int, num_layers: int, rng: np.random.Generator
    ) -> None:
        self._rng = rng
        self._num_layers = num_layers
        self._fixed = self._vary(speeds.spread) / speeds.slow.get(rank, 1.0)
        self._drift = _sigma(speeds.drift)
        self._keep = math.exp(-1.0 / speeds.drift_steps)
        self._walk = self._rng.standard_normal() if self._drift else 0.0
        self._jitter = _sigma(speeds.jitter)

    def next_step(self) -> Factors:
        """[num_layers]: by which factor the layers of the next step take longer than normal."""
        factor = self._fixed * math.exp(self._drift * self._walk - self._drift**2 / 2)
        if self._drift:
            fresh = math.sqrt(1 - self._keep**2)
            self._walk = self._keep * self._walk + fresh * self._rng.standard_normal()
        if not self._jitter:
            return np.full(self._num_layers, factor)
        noise = self._rng.standard_normal(self._num_layers)
        return np.asarray(factor * np.exp(self._jitter * noise - self._jitter**2 / 2))

    def _vary(self, deviation: float) -> float:
        sigma = _sigma(deviation)
        return math.exp(sigma * self._rng.standard_normal() - sigma**2 / 2) if sigma else 1.0


def _sigma(deviation: float) -> float:
    """The parameter of the lognormal distribution of mean 1 with this standard deviation."""
    return math.sqrt(math.log1p(deviation**2))
