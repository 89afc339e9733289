# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How many ranks read the same source at the same time."""

from collections.abc import Sequence

import simpy


class Rivals:
    """Counts the seconds that each source was read by 1, 2, 3, ... pulls."""

    def __init__(self, env: simpy.Environment, num_ranks: int) -> None:
        self._env = env
        self._pulls = [0] * num_ranks
        self._since = [0.0] * num_ranks
        self._seconds: dict[int, float] = {}

    def change(self, source: int, difference: int) -> None:
        """`difference` more pulls read the source from now on."""
        pulls, now = self._pulls[source], self._env.now
        if pulls and now > self._since[source]:
            self._seconds[pulls] = self._seconds.get(pulls, 0.0) + now - self._since[source]
        self._pulls[source] = pulls + difference
        self._since[source] = now

    def shares(self) -> Sequence[float]:
        """How a pull's time is spread over the number of its rivals, beginning with no rival.

        The shares are of the time that pulls take, so a source that 3 ranks read counts 3 times:
        that is how Table 2 of the paper counts. They add up to 1; empty: nothing was pulled.
        """
        if not self._seconds:
            return ()
        total = sum(pulls * seconds for pulls, seconds in self._seconds.items())
        most = max(self._seconds)
        return tuple(n * self._seconds.get(n, 0.0) / total for n in range(1, most + 1))
