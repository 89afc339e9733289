# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The slots of a rank: which layer is fetched when. The rules are those of docs/scheduler.md.

* Layer l uses slot l mod `num_slots`. When a layer's experts have been computed, its slot is free,
  and the fetch for the next layer of that slot is due. After a slot's last layer comes its first
  one, of the next step.
* At the start the fetch for each slot's first layer is due.
* A rank has one copy stream: fetches run one at a time, in the order in which they were due.
"""

from collections.abc import Generator

import simpy

from vllm_dwdp.simulation.copier import Copier


class Slots:
    """Fetches layers into slots, and tells a rank when a layer's experts are there."""

    def __init__(
        self, env: simpy.Environment, copier: Copier, *, num_layers: int, num_slots: int
    ) -> None:
        self._env = env
        self._copier = copier
        self._num_layers = num_layers
        self._num_slots = min(num_slots, num_layers)
        self._there: dict[int, simpy.Event] = {}
        self._due: list[int] = []
        self._is_copying = False
        self.bytes_fetched = 0.0
        self.copy_s = 0.0

    def start(self) -> None:
        """Fill each slot for its first layer."""
        for layer_idx in range(self._num_slots):
            self._fetch(layer_idx)

    def experts_of(self, layer_idx: int) -> simpy.Event:
        """The event after which the layer's experts are in its slot."""
        return self._there[layer_idx]

    def release(self, layer_idx: int) -> None:
        """The layer's experts have been computed: its slot goes to the next layer."""
        following = layer_idx + self._num_slots
        if following >= self._num_layers:
            following = layer_idx % self._num_slots
        self._fetch(following)

    def _fetch(self, layer_idx: int) -> None:
        self._there[layer_idx] = self._env.event()
        self._due.append(layer_idx)
        if not self._is_copying:
            self._is_copying = True
            self._env.process(self._copy())

    def _copy(self) -> Generator[simpy.Event, object, None]:
        """The process that fetches layers until none is due."""
        while self._due:
            layer_idx = self._due.pop(0)
            began = self._env.now
            yield self._copier.fetch_layer()
            self.copy_s += self._env.now - began
            self.bytes_fetched += self._copier.layer_bytes
            self._there[layer_idx].succeed()
        self._is_copying = False
