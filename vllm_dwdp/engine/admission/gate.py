# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""When waiting prompts may start a step: when they have enough tokens, or have waited enough."""

import time
from collections.abc import Callable

from vllm_dwdp.config import AUTO, DwdpConfig

BREAK_EVEN_FACTOR = 1.2
"""With 'auto', a step has so many times the break-even tokens. Copy and compute slow each other
down, so that a step of just the break-even size doesn't hide the whole copy."""


def min_tokens_of_step(config: DwdpConfig, break_even_tokens: int | None) -> int | None:
    """Prompt tokens that a step of prompts should have; None if prompts are never held.

    break_even_tokens: see CostModel.break_even_tokens; None if no step prefetches.
    """
    wanted = config.min_tokens_per_step
    if isinstance(wanted, int) or wanted is None:
        return wanted
    assert wanted == AUTO, "DwdpConfig refuses other words"
    return None if break_even_tokens is None else round(break_even_tokens * BREAK_EVEN_FACTOR)


class AdmissionGate:
    """Says how long waiting prompts are held: until they have `min_tokens`, or for `max_wait_s`."""

    def __init__(
        self, min_tokens: int, max_wait_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.min_tokens = min_tokens
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._closed_since: float | None = None

    def held_s(self, num_tokens: int) -> float:
        """Seconds for which prompts of so many tokens in all are still held; 0 if they may start.

        The time counts from the first call that finds prompts to hold since the last `open`.
        """
        if not 0 < num_tokens < self.min_tokens:
            self._closed_since = None
            return 0.0
        now = self._clock()
        if self._closed_since is None:
            self._closed_since = now
        return max(0.0, self._closed_since + self._max_wait_s - now)

    def open(self) -> None:
        """To be called when a step starts that may take all waiting prompts.

        Prompts that it can't take wait anew, for up to `max_wait_s`.
        """
        self._closed_since = None
