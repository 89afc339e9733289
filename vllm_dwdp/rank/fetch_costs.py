# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures what fetching costs: each rank times its links and one layer, and the slowest counts.

* This happens before slots are made, because the costs decide whether a step will use slots.
* Every rank of the group takes part in every `gather`, even if it measured nothing. So no rank
  waits for a peer that has other options.
* vLLM's profiling run can't serve as the timed step: in it all tokens choose the same experts.
"""

import contextlib
import gc
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from vllm_dwdp._core import Copier
from vllm_dwdp.config import DwdpConfig, FetchMode
from vllm_dwdp.device.bandwidth import Bandwidths
from vllm_dwdp.device.base import RankMemory
from vllm_dwdp.fetch.compute_probe import ComputeProbe
from vllm_dwdp.fetch.cost_model import CostModel
from vllm_dwdp.fetch.links import Links, measure_links, places_of
from vllm_dwdp.group.session import Gather
from vllm_dwdp.memory.slots import Slots
from vllm_dwdp.rank.experts import RankExperts
from vllm_dwdp.rank.model_layers import ModelLayers

RunStep = Callable[[], Any]
"""Runs a step of the largest size on made-up tokens, without attention."""

NUM_STEPS = 3
"""How many steps are timed in place, and how many on a slot."""


class LayerCost(NamedTuple):
    """The cost of one layer.

    missing_bytes: bytes of the experts it lacks. compute_s_per_token: seconds that it computes for
    a token on a slot. direct_extra_s_per_token: seconds more if it reads those experts in place.
    """

    missing_bytes: int
    compute_s_per_token: float
    direct_extra_s_per_token: float = 0.0


class FetchCosts:
    """Measures the figures of the cost model, except those that the user's options give.

    gather: see GroupSession.gather. on_step: called with a description of each step that is timed.
    """

    def __init__(
        self,
        config: DwdpConfig,
        layers: ModelLayers,
        experts: RankExperts,
        *,
        memory: RankMemory,
        copier: Copier,
        gather: Gather,
        on_step: Callable[[str], None],
    ) -> None:
        self._config = config
        self._layers = layers
        self._experts = experts
        layout = self._layout = experts.layout
        self._memory = memory
        self._copier = copier
        self._gather = gather
        self._on_step = on_step
        self._missing = [layout.missing_bytes(i) for i in range(layout.num_layers)]
        self.links: Links | None = None

    @property
    def lacks_nothing(self) -> bool:
        """Whether this rank has all experts itself."""
        return not any(self._missing)

    @property
    def missing_bytes(self) -> int:
        """Bytes of the missing experts of the layer that lacks most."""
        return max(self._missing)

    def measure_links(self) -> Bandwidths | None:
        """Measure this rank's links; returns the slowest figures of the group.

        None if no rank lacks an expert.
        """
        probe = self._memory.link_probe(self._copier)
        places = places_of(
            self._layout,
            self._experts.direct,
            num_bytes=probe.room_bytes,
            bytes_of=self._memory.bytes_of,
        )
        self._gather("links begin", b"")
        if not self.lacks_nothing:
            rank, num_ranks = self._layout.rank, self._layout.num_ranks
            self.links = measure_links(probe, places, rank=rank, num_ranks=num_ranks)
        found = self._agree("links", self._own_bandwidths())
        return Bandwidths.slowest(Bandwidths(*one) for one in found) if found else None

    def measure_layer(self, run_step: RunStep, *, is_needed: bool) -> LayerCost | None:
        """Measure one layer if this rank needs it; returns the largest figures of the group.

        None if no rank needs it. is_needed: whether this rank needs it.
        """
        own = None
        if is_needed and (given := self._config.compute_us_per_token) is not None:
            own = LayerCost(self.missing_bytes, given / 1e6)
        elif is_needed:
            own = LayerCost(self.missing_bytes, *self._measured(run_step))
        found = self._agree("costs of a layer", own)
        return LayerCost(*map(max, zip(*found, strict=True))) if found else None

    def model(self, bandwidths: Bandwidths, layer: LayerCost) -> CostModel:
        return CostModel(
            missing_bytes=layer.missing_bytes,
            num_experts=self._layers.num_experts,
            top_k=self._layers.top_k,
            bandwidths=bandwidths,
            compute_s_per_token=layer.compute_s_per_token,
            direct_extra_s_per_token=layer.direct_extra_s_per_token,
        )

    def _agree(self, name: str, own: tuple[float, ...] | None) -> list[list[Any]]:
        """Exchange figures with the group; returns those of each rank that has any."""
        found = self._gather(name, json.dumps(own).encode())
        return [figures for payload in found if (figures := json.loads(payload)) is not None]

    def _own_bandwidths(self) -> Bandwidths | None:
        if self.links is None:
            return None
        measured = self.links.bandwidths(self._layout.bytes_by_peer())
        if (gb_per_s := self._config.link_gb_per_s) is None:
            return measured
        return measured._replace(copies=gb_per_s * 1e9, peers=gb_per_s * 1e9)

    def _measured(self, run_step: RunStep) -> tuple[float, float]:
        """Time the layer that lacks most, in place and on a slot made for it alone.

        Returns the seconds that it computes for a token on the slot, and how many more in place.
        """
        layer_idx = self._missing.index(self.missing_bytes)
        in_place = self._seconds_per_token(run_step, layer_idx, FetchMode.DIRECT)
        with self._on_slot(layer_idx):
            on_slot = self._seconds_per_token(run_step, layer_idx, FetchMode.PREFETCH)
        return on_slot, max(0.0, in_place - on_slot)

    def _seconds_per_token(self, run_step: RunStep, layer_idx: int, mode: FetchMode) -> float:
        probe = ComputeProbe(self._memory.seconds, layer_idx, mode)
        self._layers.install(probe)
        for step in range(NUM_STEPS):
            self._on_step(f"step {step + 1} of {NUM_STEPS} to measure a layer that runs {mode}")
            run_step()
        return probe.seconds_per_token

    @contextlib.contextmanager
    def _on_slot(self, layer_idx: int) -> Iterator[None]:
        """Within this context the layer can run on a slot that holds its experts.

        The slot is freed at the end.
        """
        slots = self._experts.make_slot_for(layer_idx, self._missing[layer_idx])
        self._fill(slots, layer_idx)
        on_slot = self._experts.build_on_slot(layer_idx, slots)
        self._layers.bind_slot(layer_idx, on_slot)
        try:
            yield
        finally:
            self._layers.unbind_slot(layer_idx)
            self._experts.views.forget(layer_idx, on_slot)
            del slots, on_slot
            gc.collect()
            self._memory.give_back()

    def _fill(self, slots: Slots, layer_idx: int) -> None:
        """Copy the layer's experts to the slot: kernels might be faster on zeros."""
        copies = slots.copies(layer_idx, self._experts.direct[layer_idx]).everything
        self._copier.submit(copies, self._memory.current_stream())
        self._copier.drain()
