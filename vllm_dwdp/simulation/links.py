# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Links between ranks that pulls share: a fluid model.

* A pull moves bytes from one source to one rank at a rate that changes only when another pull
  begins or ends at either of them.
* A source's egress is divided evenly among the pulls that read it, and a rank's ingress among its
  own pulls. A pull takes the smaller of its two shares. What it can't use of the larger one is not
  given to others, so rates are at least as slow as those of links that share perfectly.
* Rates are worked out once per instant, after all pulls of that instant have begun and ended.
"""

from collections.abc import Callable

import simpy
from simpy.events import EventPriority

from vllm_dwdp.simulation.rivals import Rivals

LAST = EventPriority(2)
"""simpy runs events of an instant by priority: urgent ones (0), normal ones (1), then these."""


class EndOfInstant(simpy.Event):
    """An event that happens after all others of the present instant."""

    def __init__(self, env: simpy.Environment) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, LAST)


class _Pull:
    """A pull under way: `remaining` bytes at time `since`, which flow at `rate` from then on."""

    __slots__ = ("done", "rank", "rate", "remaining", "since", "source", "turn")

    def __init__(self, rank: int, source: int, num_bytes: float, done: simpy.Event) -> None:
        self.rank = rank
        self.source = source
        self.remaining = num_bytes
        self.done = done
        self.rate = 0.0
        self.since = 0.0
        self.turn = 0


class Links:
    """All links of a job. Bandwidths are in bytes per second and the same for all ranks."""

    def __init__(
        self, env: simpy.Environment, num_ranks: int, *, ingress: float, egress: float
    ) -> None:
        self.rivals = Rivals(env, num_ranks)
        self._env = env
        self._ingress = ingress
        self._egress = egress
        self._by_rank: list[dict[_Pull, None]] = [{} for _ in range(num_ranks)]
        self._by_source: list[dict[_Pull, None]] = [{} for _ in range(num_ranks)]
        self._changed_ranks: dict[int, None] = {}
        self._changed_sources: dict[int, None] = {}

    def pull(self, rank: int, source: int, num_bytes: float) -> simpy.Event:
        """Begin to move `num_bytes` from `source` to `rank`; the event happens at their end."""
        pull = _Pull(rank, source, num_bytes, self._env.event())
        self._by_rank[rank][pull] = None
        self._by_source[source][pull] = None
        self.rivals.change(source, +1)
        self._change(pull)
        return pull.done

    def _change(self, pull: _Pull) -> None:
        if not self._changed_ranks:
            _call(EndOfInstant(self._env), self._settle)
        self._changed_ranks[pull.rank] = None
        self._changed_sources[pull.source] = None

    def _settle(self, _: simpy.Event) -> None:
        pulls: dict[_Pull, None] = {}
        for source in self._changed_sources:
            pulls.update(self._by_source[source])
        for rank in self._changed_ranks:
            pulls.update(self._by_rank[rank])
        self._changed_ranks.clear()
        self._changed_sources.clear()
        for pull in pulls:
            self._set_rate(pull)

    def _set_rate(self, pull: _Pull) -> None:
        rate = min(
            self._ingress / len(self._by_rank[pull.rank]),
            self._egress / len(self._by_source[pull.source]),
        )
        if rate == pull.rate:
            return
        now = self._env.now
        pull.remaining = max(0.0, pull.remaining - pull.rate * (now - pull.since))
        pull.rate, pull.since, pull.turn = rate, now, pull.turn + 1
        turn, timer = pull.turn, self._env.timeout(pull.remaining / rate)
        _call(timer, lambda _: self._on_timer(pull, turn))

    def _on_timer(self, pull: _Pull, turn: int) -> None:
        """End the pull, unless its rate has changed since this timer was set."""
        if turn != pull.turn:
            return
        del self._by_rank[pull.rank][pull]
        del self._by_source[pull.source][pull]
        self.rivals.change(pull.source, -1)
        self._change(pull)
        pull.done.succeed()


def _call(event: simpy.Event, function: Callable[[simpy.Event], None]) -> None:
    event.callbacks.append(function)
