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
    """Lay out a loaded layer's expert tensors; also sets its `dtypes` and `full_shapes`.

    granularity: bytes of a page. Raises ValueError unless every tensor is dense, with the expert
    axis outermost.
    """
    return tuple(
        TensorLayout(
            ExpertTensor(name, _row_bytes(layer, name, parameter)), layer.placement, granularity
        )
        for name, parameter in layer.expert_parameters().items()
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
        parameters = layer.expert_parameters().values()
        experts.adopt_layer([p.data_ptr() for p in parameters])
        for parameter in parameters:
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
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
) -> dict[str, torch.Tensor]:
    tensors = {}
    for tensor_layout, view in zip(layout, views, strict=True):
        name = tensor_layout.tensor.name
        data = memory.bytes_of(view)[: tensor_layout.num_bytes]
        tensors[name] = data.view(layer.dtypes[name]).view(layer.full_shapes[name])
    return tensors


def _row_bytes(layer: DwdpRoutedExperts, name: str, parameter: torch.nn.Parameter) -> int:
    """Bytes of one expert. See `layer_layout`, also for the attributes that this sets."""
    num_local = len(layer.local_experts)
    if parameter.shape[0] != num_local or not parameter.data.is_contiguous():
        raise ValueError(
            f"{layer.layer_name}: expected {name} as a dense [{num_local}, ...], got shape "
            f"{tuple(parameter.shape)} with strides {parameter.stride()}."
        )
    layer.dtypes[name] = parameter.dtype
    layer.full_shapes[name] = (layer.placement.num_experts, *parameter.shape[1:])
    return parameter.nbytes // num_local
