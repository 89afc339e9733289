# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank of DWDP: it computes its own prompts and waits for nobody but its own copies.

compute   A0 E0  A1 E1  A2 ..E2  A3 ...      A: attention and the rest, E: experts
copies    --2-- --3-----  ----4---           .. the step waits for the experts of layer 2
"""

from collections.abc import Generator

import simpy

from vllm_dwdp.simulation.chunk import Chunk
from vllm_dwdp.simulation.costs import StepCosts
from vllm_dwdp.simulation.prompt_queue import PromptQueue
from vllm_dwdp.simulation.slots import Slots
from vllm_dwdp.simulation.speeds import Pace
from vllm_dwdp.simulation.tally import Tally


class DwdpRank:
    """One rank, with its queue, its slots and its speed."""

    def __init__(
        self,
        env: simpy.Environment,
        costs: StepCosts,
        queue: PromptQueue,
        slots: Slots,
        pace: Pace,
    ) -> None:
        self.queue = queue
        self.slots = slots
        self.tally = Tally()
        self._env = env
        self._costs = costs
        self._pace = pace

    def run(self, start_s: float) -> Generator[simpy.Event, object, None]:
        """The rank's process, which begins to fetch and to compute at `start_s`."""
        yield self._env.timeout(start_s)
        self.slots.start()
        while True:
            if self.queue.is_empty:
                yield self.queue.next_arrival()
            chunk, began = self.queue.take(), self._env.now
            yield from self._step(chunk)
            self.queue.served(chunk)
            self.tally.count(chunk, began, self._env.now)

    def _step(self, chunk: Chunk) -> Generator[simpy.Event, object, None]:
        env, costs, slots = self._env, self._costs, self.slots
        slowdown = costs.copy_slowdown(chunk)
        attention_s = costs.attention_s(chunk) * slowdown
        experts_s = costs.experts_s(chunk.num_tokens) * slowdown
        factors = self._pace.next_step().tolist()
        yield env.timeout(costs.step_s(chunk) * factors[0])
        for layer_idx, factor in enumerate(factors):
            yield env.timeout(attention_s * factor)
            wanted = env.now
            yield slots.experts_of(layer_idx)
            self.tally.exposed_s += env.now - wanted
            yield env.timeout(experts_s * factor)
            slots.release(layer_idx)
