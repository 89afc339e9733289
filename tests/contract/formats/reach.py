# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Everything that a MoE layer can reach: its tensors and numbers, by path."""

from collections.abc import Iterator
from typing import Any

import torch

MAX_DEPTH = 8
WALKED = ("vllm", "triton_kernels", "humming")
SKIPPED_TYPES = {"VllmConfig", "ExpertMapManager", "DwdpExpertMap"}
SKIPPED = {
    *("_forward_method", "_expert_map", "expert_mask", "layer_name", "layer_idx"),
    *("_backward_hooks", "_forward_hooks", "training", "_readers"),
}
PLAIN = bool, int, float, str


def reached(layer: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and plain values, by path."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    for path, found in _walk(layer, "", MAX_DEPTH, set()):
        if isinstance(found, torch.Tensor):
            tensors[path] = found.detach()
        else:
            values[path] = found
    return tensors, values


def _walk(value: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if value is None or isinstance(value, (torch.Tensor, *PLAIN)):
        yield path, value
    elif depth and id(value) not in seen:
        for name, child in _children(value):
            seen.add(id(value))
            yield from _walk(child, f"{path}.{name}".lstrip("."), depth - 1, seen)


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from ((key, child) for key, child in value.items() if isinstance(key, str | int))
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif isinstance(value, torch.nn.Module):
        own = {k: v for k, v in vars(value).items() if k not in OF_MODULES}
        yield from (value._parameters | value._buffers | value._modules | own).items()
    elif _is_walked(value):
        yield from ((k, v) for k, v in vars(value).items() if k not in SKIPPED)


OF_MODULES = set(vars(torch.nn.Module())) | SKIPPED


def _is_walked(value: Any) -> bool:
    kind = type(value)
    is_object = hasattr(value, "__dict__") and not isinstance(value, type)
    package = kind.__module__.partition(".")[0]
    return is_object and package in WALKED and kind.__name__ not in SKIPPED_TYPES


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same bits."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.numel():
        return True
    bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return torch.equal(*bits)
