# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Puts views of all experts in the places where a MoE layer has held its local experts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from vllm_dwdp.engine.moe.kernel.expert_rows import ExpertRows
from vllm_dwdp.engine.moe.kernel.holders import Place, copy_holders, held_tensors, put
from vllm_dwdp.engine.moe.kernel.recipe import KernelRecipe
from vllm_dwdp.engine.moe.kernel.self_check import SelfCheck


class Bound(NamedTuple):
    """A parameter of a layer that shows a view; name: one of the parameter's."""

    name: str
    parameter: torch.nn.Parameter
    view: torch.Tensor


class LayerTensors:
    """The tensors of experts of one layer. Making it takes the local experts from the layer.

    rows: all that the layer has; the other methods take views in their order.
    """

    def __init__(self, layer: Any, rows: Sequence[ExpertRows]) -> None:
        self.rows = rows
        held, tensors = held_tensors(layer), layer.tensors_of(rows)
        self._recipe = KernelRecipe(layer, rows, tensors)
        self._self_check = SelfCheck(layer, rows, tensors)
        layer.quant_method.moe_kernel = layer.quant_method.moe_quant_config = None
        for one in rows:
            for place in one.places:
                _take(layer, place, held[place], len(layer.local_experts))

    def show(self, layer: Any, views: Sequence[torch.Tensor]) -> list[Bound]:
        """Let the layer itself show the views; its parameters stay the same objects.

        Raises ConfigError, see self_check.py.
        """
        held, bound = held_tensors(layer), []
        for rows, view in zip(self.rows, views, strict=True):
            for place in rows.places:
                if isinstance(parameter := held[place], torch.nn.Parameter):
                    parameter.data = view
                    if len(place) == 1:
                        bound.append(Bound(place[0], parameter, view))
                else:
                    put(layer, place, view, (rows.num_experts, layer.global_num_experts))
        _count_all_experts(layer)
        self._make_kernel(layer, views)
        return bound

    def show_on(self, reader: Any, views: Sequence[torch.Tensor]) -> None:
        """Let a copy of the layer, which has a method of its own, show other views.

        Raises ConfigError, see self_check.py.
        """
        copy_holders(reader, [place for rows in self.rows for place in rows.places])
        held = held_tensors(reader)
        for rows, view in zip(self.rows, views, strict=True):
            parameter = torch.nn.Parameter(view, requires_grad=False)
            for place in rows.places:
                is_parameter = isinstance(held[place], torch.nn.Parameter)
                counts = rows.num_experts, reader.global_num_experts
                put(reader, place, parameter if is_parameter else view, counts)
        self._make_kernel(reader, views)

    def _make_kernel(self, layer: Any, views: Sequence[torch.Tensor]) -> None:
        self._recipe.make(layer, views)
        self._self_check.run(layer, views)


def _take(layer: Any, place: Place, tensor: torch.Tensor, num_local: int) -> None:
    """Leave a tensor without numbers in a place, and nothing that keeps its memory."""
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    if isinstance(tensor, torch.nn.Parameter):
        tensor.data = empty
    else:  # it may be a view, which would keep all that it is a view of
        put(layer, place, empty, (num_local, num_local))


def _count_all_experts(layer: Any) -> None:
    """Let all counts be those of a layer that has every expert.

    Parameters of no bytes have a row for each expert too.
    """
    num_local, num_all = len(layer.local_experts), layer.global_num_experts
    layer.moe_config.num_local_experts = num_all
    for owner in (layer, layer.quant_method):
        if "num_experts" in vars(owner):
            owner.num_experts = num_all
    layer.expert_map_manager.show_all()
    layer.update_expert_map_info()
    for parameter in filter(torch.is_tensor, layer._parameters.values()):
        if parameter.dim() > 1 and not parameter.numel() and parameter.shape[0] == num_local:
            parameter.data = parameter.data.new_empty(num_all, *parameter.shape[1:])
