# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which fetch mode a step takes: a pure function of its padded token count.

It is pure so that a step that replays a captured CUDA graph takes the mode of the capture.
"""

import bisect
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.cost_model import CostModel, best_mode

MIN_GAIN = 0.1


@dataclass(frozen=True)
class Policy:
    """starts[i] is the smallest token count that takes modes[i]; starts[0] is 0.

    captured_tokens: steps up to this size may be captured in a CUDA graph; 0: none.
    """

    starts: tuple[int, ...]
    modes: tuple[FetchMode, ...]
    captured_tokens: int = 0

    @classmethod
    def always(cls, mode: FetchMode, *, captured_tokens: int = 0) -> "Policy":
        """One mode for all steps; but in place of prefetch, steps of captured sizes run direct."""
        if mode is FetchMode.PREFETCH and captured_tokens:
            return cls((0, captured_tokens + 1), (FetchMode.DIRECT, mode), captured_tokens)
        return cls((0,), (mode,), captured_tokens)

    @classmethod
    def cheapest(
        cls,
        model: CostModel,
        *,
        max_tokens: int,
        captured_tokens: int = 0,
        hears_router: bool = True,
    ) -> "Policy":
        """The cheapest mode for each step up to `max_tokens`, whose mode larger steps take, too.

        Steps that may be captured don't prefetch. hears_router: whether the kernels tell which
        experts the router chose; if not, no step is selective.
        """
        modes = (
            best_mode(
                model.seconds(num_tokens),
                may_select=hears_router,
                may_prefetch=num_tokens > captured_tokens,
                min_gain=MIN_GAIN,
            )
            for num_tokens in range(max_tokens + 1)
        )
        return cls._of_runs(modes, captured_tokens)

    def mode(self, num_tokens: int) -> FetchMode:
        if len(self.modes) == 1:
            return self.modes[0]
        return self.modes[bisect.bisect_right(self.starts, num_tokens) - 1]

    @property
    def is_direct(self) -> bool:
        """Whether no step copies anything."""
        return set(self.modes) == {FetchMode.DIRECT}

    def modes_up_to(self, num_tokens: int) -> set[FetchMode]:
        """The modes of steps of at most so many tokens."""
        return set(self.modes[: bisect.bisect_right(self.starts, num_tokens)])

    @property
    def graphs_write_slots(self) -> bool:
        """Whether a captured step may run in a mode that copies."""
        modes = self.modes_up_to(self.captured_tokens)
        return self.captured_tokens > 0 and modes != {FetchMode.DIRECT}

    def table(self) -> str:
        """The thresholds, for the log: "0-63 selective, from 64 direct"."""
        ends = [f"{a}-{b - 1}" for a, b in itertools.pairwise(self.starts)]
        ranges = [*ends, f"from {self.starts[-1]}"]
        return ", ".join(f"{r} {mode}" for r, mode in zip(ranges, self.modes, strict=True))

    @classmethod
    def _of_runs(cls, modes: Iterable[FetchMode], captured_tokens: int) -> "Policy":
        starts: list[int] = []
        kept: list[FetchMode] = []
        for num_tokens, mode in enumerate(modes):
            if not kept or kept[-1] is not mode:
                starts.append(num_tokens)
                kept.append(mode)
        return cls(tuple(starts), tuple(kept), captured_tokens)
