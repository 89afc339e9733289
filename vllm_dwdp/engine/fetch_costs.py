# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What fetching costs on this rank: links are measured once views exist, compute on steps.

vLLM's profiling run would not do: it lets all tokens choose the same experts, and on GPUs may leave
attention out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vllm_dwdp._core import Copier, View
from vllm_dwdp.config import DwdpConfig, FetchMode
from vllm_dwdp.engine.experts_op import install
from vllm_dwdp.engine.rank_memory import RankMemory
from vllm_dwdp.engine.routed_experts import DwdpRoutedExperts
from vllm_dwdp.fetch.bandwidth import Bandwidths
from vllm_dwdp.fetch.compute_probe import ComputeProbe
from vllm_dwdp.fetch.cost_model import CostModel
from vllm_dwdp.layout import LayerLayout, sourced_blocks
from vllm_dwdp.slot_layout import missing_bytes

RunStep = Callable[[], Any]
"""Runs the model's largest step, on made-up tokens."""


class FetchCosts:
    """Figures for the cost model; what the user gives is not measured."""

    def __init__(
        self,
        config: DwdpConfig,
        layers: Sequence[DwdpRoutedExperts],
        layouts: Sequence[LayerLayout],
        *,
        rank: int,
        memory: RankMemory,
    ) -> None:
        self._config = config
        self._layers = layers
        self._layouts = layouts
        self._rank = rank
        self._memory = memory
        self._links: Bandwidths | None = None

    def measure_links(self, copier: Copier, direct: Sequence[Sequence[View]]) -> Bandwidths | None:
        """From the first layer that lacks something; None where none does. Comes first."""
        for layer_idx, views in enumerate(direct):
            own, peers = self._places(layer_idx, views)
            if peers:
                self._links = self._with_given_link(self._memory.bandwidths(copier, own, peers))
                break
        return self._links

    def given(self) -> CostModel | None:
        """Without a step, where the user says what a layer computes."""
        given = self._config.compute_us_per_token
        return None if given is None else self._cost_model(given / 1e6, 0.0)

    def measured(self, run_step: RunStep) -> CostModel:
        """From steps on slots, whatever they hold, then in place."""
        on_slots = self._seconds_per_token(run_step, FetchMode.PREFETCH)
        in_place = self._seconds_per_token(run_step, FetchMode.DIRECT)
        return self._cost_model(on_slots, max(0.0, in_place - on_slots))

    def _seconds_per_token(self, run_step: RunStep, mode: FetchMode) -> float:
        """Of one layer, in the second of two steps: the first one still compiles and allocates."""
        for _ in range(2):
            probe = ComputeProbe(self._memory.seconds, mode)
            install(self._layers, probe)
            run_step()
        return probe.seconds_per_token

    def _cost_model(self, compute_s: float, direct_extra_s: float) -> CostModel:
        """Both for a token."""
        assert self._links is not None, "links are measured first"
        layer = self._layers[0]
        return CostModel(
            missing_bytes=max(
                missing_bytes(layout, idx, rank=self._rank)
                for idx, layout in enumerate(self._layouts)
            ),
            num_experts=layer.global_num_experts,
            top_k=layer.moe_config.experts_per_token,
            bandwidths=self._links,
            compute_s_per_token=compute_s,
            direct_extra_s_per_token=direct_extra_s,
        )

    def _places(
        self, layer_idx: int, views: Sequence[View]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """A layer's own blocks and its peers', as bytes, where its views show them."""
        shown = [self._memory.bytes_of(view) for view in views]
        own: list[torch.Tensor] = []
        peers: list[torch.Tensor] = []
        blocks = sourced_blocks(self._layouts[layer_idx], layer_idx, rank=self._rank)
        for tensor_idx, extent, source in blocks:
            place = shown[tensor_idx][extent.start : extent.start + extent.num_bytes]
            (own if source == self._rank else peers).append(place)
        return own, peers

    def _with_given_link(self, measured: Bandwidths) -> Bandwidths:
        if (gb_per_s := self._config.link_gb_per_s) is None:
            return measured
        return measured._replace(copies=gb_per_s * 1e9, peers=gb_per_s * 1e9)
