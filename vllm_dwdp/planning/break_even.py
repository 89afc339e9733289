# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How many tokens a step needs: to hide its copies, and for DWDP to be worth it."""

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from vllm_dwdp.planning import constants
from vllm_dwdp.planning.implementation import Implementation
from vllm_dwdp.planning.model import MoeModel
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.roofline import layer_seconds
from vllm_dwdp.planning.spread import Spread
from vllm_dwdp.planning.throughput import throughput
from vllm_dwdp.planning.workload import Workload

_MOST = 1 << 24
"""Steps of more tokens are out of question on any hardware."""


@dataclass(frozen=True)
class Window:
    """Seconds that a MoE layer computes without a copy under it, and that its copy takes alone."""

    compute: float
    fetch: float

    @property
    def over_fetch(self) -> float:
        """Infinite where nothing is fetched."""
        return self.compute / self.fetch if self.fetch else float("inf")


def window(model: MoeModel, rates: Rates, work: Workload, spread: Spread) -> Window:
    fetch = 0.0 if rates.reads_in_place else rates.copy_s(spread.fetch_bytes)
    return Window(layer_seconds(model, rates, work).total, fetch)


def break_even_tokens(
    model: MoeModel, rates: Rates, spread: Spread, *, isl: int, length_ratio: float
) -> int | None:
    """The smallest step whose computation hides its copies; 0 where nothing is copied.

    None if no step of up to 16 million tokens does.
    """

    def hides(tokens: int) -> bool:
        work = Workload(tokens, isl, length_ratio)
        return window(model, rates, work, spread).over_fetch >= 1

    if rates.reads_in_place or not spread.missing:
        return 0
    found = bisect.bisect_left(range(1, _MOST), True, key=hides) + 1
    return found if found < _MOST else None


def recommended_tokens(
    model: MoeModel,
    rates: Rates,
    spread: Spread,
    how: Implementation,
    *,
    isl: int,
    length_ratio: float,
) -> int | None:
    """The smallest step that hides its copies with room to spare, and beats expert parallelism.

    A multiple of constants.TOKENS_STEP; None if there is none up to constants.MOST_TOKENS.
    """

    def pays(tokens: int) -> bool:
        work = Workload(tokens, isl, length_ratio)
        if window(model, rates, work, spread).over_fetch < constants.HIDE_FACTOR:
            return False
        return throughput(model, rates, work, spread, how).dep_over_dwdp >= constants.MIN_GAIN

    return _first(pays)


def _first(pays: Callable[[int], bool]) -> int | None:
    step = constants.TOKENS_STEP
    return next((n for n in range(step, constants.MOST_TOKENS + 1, step) if pays(n)), None)
