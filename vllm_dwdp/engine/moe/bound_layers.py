# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Shows the MoE layers of a vLLM model to the parts of a rank that don't know vLLM."""

from collections.abc import Sequence

from vllm_dwdp._core import View
from vllm_dwdp.config import ConfigError
from vllm_dwdp.device.base import RankMemory
from vllm_dwdp.engine.moe.adoption import bind_layer, bind_slot
from vllm_dwdp.engine.moe.context import MoeContext
from vllm_dwdp.engine.moe.graph_fence import GraphFence
from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts
from vllm_dwdp.fetch.base import Fetcher
from vllm_dwdp.fetch.scheduler import FetchScheduler
from vllm_dwdp.layout.rank_layout import RankLayout


class BoundLayers:
    """The `ModelLayers` (rank/model_layers.py) of a vLLM model."""

    def __init__(self, context: MoeContext, layout: RankLayout, memory: RankMemory) -> None:
        self._context = context
        self._layers = context.layers
        self._layouts = layout.layouts
        self._memory = memory

    @property
    def num_experts(self) -> int:
        return max(layer.global_num_experts for layer in self._layers)

    @property
    def top_k(self) -> int:
        return max(int(layer.moe_config.experts_per_token) for layer in self._layers)

    def bind(self, direct: Sequence[Sequence[View]]) -> None:
        """Bind each layer to its views in `direct`, which show peers' blocks in place.

        Raises ConfigError, see DwdpRoutedExperts.bind.
        """
        for layer, layout, views in zip(self._layers, self._layouts, direct, strict=True):
            bind_layer(self._memory, layer, layout, views)

    def install(self, fetcher: Fetcher) -> None:
        self._context.install(fetcher)

    def bind_slot(self, layer_idx: int, views: Sequence[View]) -> None:
        bind_slot(self._memory, self._layers[layer_idx], self._layouts[layer_idx], views)

    def unbind_slot(self, layer_idx: int) -> None:
        self._layers[layer_idx].unbind_slot()

    @property
    def hears_router(self) -> bool:
        return not self._silent

    def check_router_is_heard(self) -> None:
        if silent := self._silent:
            raise ConfigError(
                f"{silent[0].layer_name}: fetch mode 'selective' needs the router's choice, the "
                f"kernel of {type(silent[0].quant_method).__name__} keeps it to itself; set "
                "dwdp.fetch to 'direct' or 'prefetch'."
            )

    @property
    def _silent(self) -> list[DwdpRoutedExperts]:
        """The layers whose kernels route by themselves."""
        return [layer for layer in self._layers if layer.quant_method.is_monolithic]

    def fence_graphs(self, scheduler: FetchScheduler) -> None:
        GraphFence.install(scheduler)
