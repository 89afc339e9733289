# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A group of expert parallelism: all ranks meet twice in each MoE layer.

A layer is attention on each rank, an all-to-all that brings tokens to their experts, the experts,
and an all-to-all that brings the results back. Each all-to-all begins when the last rank has come
to it. So the ranks of a group are always at the same place, and one process stands for all.

* All ranks step together as soon as one of them has a prompt; the others compute a dummy step.
* The tokens of all ranks are pooled. A rank gets an equal part of them, times a random factor of
  mean 1 for each layer and step: the routing's skew.
"""

from collections.abc import Generator, Sequence

import numpy as np
import simpy

from vllm_dwdp.simulation.chunk import Chunk
from vllm_dwdp.simulation.costs import StepCosts
from vllm_dwdp.simulation.prompt_queue import PromptQueue
from vllm_dwdp.simulation.skew import RoutingSkew
from vllm_dwdp.simulation.speeds import Factors, Pace
from vllm_dwdp.simulation.tally import Tally


class DepGroup:
    """Ranks in lock-step, with a queue and a speed each."""

    def __init__(
        self,
        env: simpy.Environment,
        costs: StepCosts,
        queues: Sequence[PromptQueue],
        paces: Sequence[Pace],
        skew: RoutingSkew,
    ) -> None:
        self.queues = queues
        self.tallies = [Tally() for _ in queues]
        self._env = env
        self._costs = costs
        self._paces = paces
        self._skew = skew

    def run(self, start_s: float) -> Generator[simpy.Event, object, None]:
        """The group's process, which begins at `start_s`, when its last rank does."""
        yield self._env.timeout(start_s)
        while True:
            if all(queue.is_empty for queue in self.queues):
                yield self._env.any_of([queue.next_arrival() for queue in self.queues])
            chunks, began = [queue.take() for queue in self.queues], self._env.now
            yield self._env.timeout(self._step_s(chunks))
            for queue, chunk, tally in zip(self.queues, chunks, self.tallies, strict=True):
                queue.served(chunk)
                tally.count(chunk, began, self._env.now)

    def _step_s(self, chunks: Sequence[Chunk]) -> float:
        """Seconds of a step; adds to the tallies what each rank waits for the slowest one."""
        factors = np.stack([pace.next_step() for pace in self._paces])
        attention = factors * _column([self._costs.attention_s(chunk) for chunk in chunks])
        experts = factors * self._experts_s(sum(chunk.num_tokens for chunk in chunks))
        before = factors[:, :1] * _column([self._costs.step_s(chunk) for chunk in chunks])
        exchange = self._costs.exchange_s(max(chunk.num_tokens for chunk in chunks))
        phases = (before, attention, experts)
        for phase in phases:
            for tally, waited in zip(self.tallies, _waits(phase), strict=True):
                tally.exposed_s += float(waited)
        together = sum(float(phase.max(axis=0).sum()) for phase in phases)
        return together + 2 * exchange * self._costs.num_layers

    def _experts_s(self, num_tokens: int) -> Factors:
        """[ranks, num_layers], or [1, 1] without skew: seconds of each rank's experts."""
        loads = self._skew.next_step() * num_tokens / len(self.queues)
        seconds = [self._costs.experts_s(load) for load in loads.ravel().tolist()]
        return np.reshape(seconds, loads.shape)


def _column(values: Sequence[float]) -> Factors:
    return np.asarray(values)[:, np.newaxis]


def _waits(phase: Factors) -> Factors:
    """[ranks]: how long each rank waits for the slowest one, over all layers."""
    return np.asarray((phase.max(axis=0) - phase).sum(axis=1))
