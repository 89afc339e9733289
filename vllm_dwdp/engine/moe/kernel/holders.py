# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Finds the tensors that a MoE layer and its quantisation method hold, and puts others there.

* Most are parameters; one parameter may have two names. Others are plain attributes of the layer or
  of its method, or lie in objects of triton_kernels that these hold.
* What a kernel holds isn't looked at here: a kernel is made again from these tensors.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch

Place = tuple[str, ...]
"""Names of attributes, from a layer on, that lead to a tensor."""

METHOD = "quant_method"
MAX_DEPTH = 4
WALKED = ("vllm", "triton_kernels")
"""Packages whose objects are looked into."""

COUNTING_ATTRIBUTES = {"shape", "shape_max", "initial_shape", "leading_shape", "B"}
"""Attributes by which triton_kernels notes the number of experts, alone or as the first size."""

MODULE_ATTRIBUTES = set(vars(torch.nn.Module()))
"""Attributes of every module; held_tensors reads the parameters itself."""

SKIPPED = {"quant_config", "moe_config", "moe", "moe_quant_config", "moe_kernel", METHOD}
"""Attributes that describe a layer, or that are made of its tensors."""


def held_tensors(layer: torch.nn.Module) -> dict[Place, torch.Tensor]:
    """Every tensor of a layer and its method, by place; those under two names have two places."""
    found: dict[Place, torch.Tensor] = {}
    found |= {(name,): p for name, p in layer._parameters.items() if p is not None}
    found |= dict(_attributes(layer, (), MAX_DEPTH, set()))
    return found | dict(_attributes(getattr(layer, METHOD), (METHOD,), MAX_DEPTH, set()))


def derived_tensors(layer: torch.nn.Module) -> dict[Place, torch.Tensor]:
    """Every tensor that the layer's kernel and its quantisation config hold, by place."""
    method = getattr(layer, METHOD)
    found: dict[Place, torch.Tensor] = {}
    for place, holder in (
        ((METHOD, "moe_quant_config"), method.moe_quant_config),
        ((METHOD, "moe_kernel", "fused_experts"), method.moe_kernel.fused_experts),
    ):
        found |= dict(_attributes(holder, place, MAX_DEPTH, set()))
    return found


def put(
    layer: torch.nn.Module, place: Place, tensor: torch.Tensor, counts: tuple[int, int]
) -> None:
    """Let a plain attribute hold another tensor.

    counts: numbers of experts, of the old tensor and of the new one. Objects of triton_kernels note
    the number of experts beside their tensor.
    """
    holders = _holders(layer, place)
    setattr(holders[-1], place[-1], tensor)
    layouts = [holder.layout for holder in holders if hasattr(holder, "layout")]
    for holder in [*holders[1:], *layouts]:
        for name in COUNTING_ATTRIBUTES & vars(holder).keys():
            object.__setattr__(holder, name, _with_count(getattr(holder, name), counts))


def _with_count(noted: Any, counts: tuple[int, int]) -> Any:
    old, new = counts
    if isinstance(noted, int):
        return new if noted == old else noted
    return type(noted)([new if noted[0] == old else noted[0], *noted[1:]]) if noted else noted


def copy_holders(layer: torch.nn.Module, places: list[Place]) -> None:
    """Give a copy of a layer its own copies of the objects that lead to these places."""
    copied: dict[Place, Any] = {(): layer}
    for place in places:
        for depth in range(1, len(place)):
            path = place[:depth]
            if path not in copied and path != (METHOD,):
                parent = _holders(layer, path)[-1]
                copied[path] = _copy(getattr(parent, path[-1]))
                object.__setattr__(parent, path[-1], copied[path])


def _copy(holder: Any) -> Any:
    made = copy.copy(holder)
    if hasattr(made, "layout"):
        object.__setattr__(made, "layout", copy.copy(made.layout))
    return made


def _holders(layer: torch.nn.Module, place: Place) -> list[Any]:
    """The objects on the way to a place, the layer first."""
    found: list[Any] = [layer]
    for name in place[:-1]:
        found.append(getattr(found[-1], name))
    return found


def _attributes(
    holder: Any, place: Place, depth: int, seen: set[int]
) -> Iterator[tuple[Place, torch.Tensor]]:
    seen.add(id(holder))
    for name, value in vars(holder).items():
        if name in SKIPPED or (isinstance(holder, torch.nn.Module) and name in MODULE_ATTRIBUTES):
            continue
        if isinstance(value, torch.Tensor):
            yield (*place, name), value
        elif depth and id(value) not in seen and _is_walked(value):
            yield from _attributes(value, (*place, name), depth - 1, seen)


def _is_walked(value: Any) -> bool:
    kind = type(value)
    is_object = not issubclass(kind, type | torch.nn.Module) and hasattr(value, "__dict__")
    return is_object and kind.__module__.partition(".")[0] in WALKED and not callable(value)
