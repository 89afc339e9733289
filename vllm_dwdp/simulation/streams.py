# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Random numbers: each use has a stream of its own, so that no use shifts the numbers of another.

DWDP and expert parallelism therefore see the same prompts and the same speeds for the same seed.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are for."""

    LENGTHS = 0
    ARRIVALS = 1
    STARTS = 2
    PACE = 3
    SKEW = 4
    SHUFFLES = 5


def generator(seed: int, stream: Stream, idx: int = 0) -> np.random.Generator:
    """The random numbers of one use; `idx` tells apart the ranks or groups that share this use."""
    return np.random.default_rng((seed, stream, idx))
