# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Lays out the tensors of loaded MoE layers, adopts them into blocks, and binds layers to views.

* Layers are adopted in order. The loaded tensors of one layer are freed before the next is copied.
* This module knows no peers: its callers give it the finished views.
"""

from collections.abc import Callable, Iterable, Sequence

import torch

from vllm_dwdp._core import View
from vllm_dwdp.device.base import RankMemory
from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, LayerLayout, TensorLayout
from vllm_dwdp.rank.experts import RankExperts


def layer_layout(layer: DwdpRoutedExperts, granularity: int) -> LayerLayout:
    """Lay out a layer's tensors of experts, as they are now. granularity: bytes of a page.

    Raises ConfigError for a tensor that dwdp can't share.
    """
    return tuple(
        TensorLayout(ExpertTensor(rows.name, rows.row_bytes), layer.placement, granularity)
        for rows in layer.expert_rows()
    )


def adopt(
    memory: RankMemory,
    layers: Sequence[DwdpRoutedExperts],
    layout: RankLayout,
    on_step: Callable[[str], None] = lambda detail: None,
) -> RankExperts:
    """Move the layers' local experts into sealed blocks and the fringe.

    Peak memory is the rank's share plus one layer. on_step: called with the name of each layer
    before it is moved.
    """
    memory.give_back()
    experts = RankExperts(memory.driver, layout, memory.slot_driver)
    for layer in layers:
        on_step(layer.layer_name)
        rows = layer.expert_rows()
        experts.adopt_layer([tensor.data_ptr() for tensor in layer.tensors_of(rows)])
        layer.release(rows)
        memory.give_back()
    experts.seal()
    return experts


def bind_layer(
    memory: RankMemory, layer: DwdpRoutedExperts, layout: LayerLayout, views: Iterable[View]
) -> None:
    """Let the layer run on its views, one per expert tensor, in the layout's order."""
    layer.bind(_tensors(memory, layer, layout, views))


def bind_slot(
    memory: RankMemory, layer: DwdpRoutedExperts, layout: LayerLayout, views: Iterable[View]
) -> None:
    """Let a bound layer also run on views that show a slot in the place of peers' memory."""
    layer.bind_slot(_tensors(memory, layer, layout, views))


def _tensors(
    memory: RankMemory, layer: DwdpRoutedExperts, layout: LayerLayout, views: Iterable[View]
) -> list[torch.Tensor]:
    num_experts = layer.global_num_experts
    return [
        rows.with_experts(num_experts).over(memory.bytes_of(view)[: tensor.num_bytes])
        for rows, tensor, view in zip(layer.rows, layout, views, strict=True)
    ]
