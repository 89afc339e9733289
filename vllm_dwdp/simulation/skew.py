# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How unevenly tokens choose the experts of ranks under expert parallelism."""

import math

import numpy as np

from vllm_dwdp.simulation.speeds import Factors


class RoutingSkew:
    """The load of each rank's experts in each layer, as a multiple of the mean load.

    deviation: standard deviation of a rank's load, divided by the mean; 0: all loads are equal.
    """

    def __init__(
        self, deviation: float, *, num_ranks: int, num_layers: int, rng: np.random.Generator
    ) -> None:
        self._sigma = math.sqrt(math.log1p(deviation**2))
        self._shape = (num_ranks, num_layers)
        self._rng = rng

    def next_step(self) -> Factors:
        """[num_ranks, num_layers] with a mean of 1 over ranks, or [[1]] without skew."""
        if not self._sigma:
            return np.ones((1, 1))
        loads = np.exp(self._sigma * self._rng.standard_normal(self._shape))
        return np.asarray(loads / loads.mean(axis=0))
