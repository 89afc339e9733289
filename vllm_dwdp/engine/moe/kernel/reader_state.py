# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Compares how two kernels of one MoE layer are set up.

A layer has a kernel that reads peers' memory in place and, if some steps copy, one that reads
slots. vLLM knows only the first: a value that it sets there later doesn't reach the second.
"""

import enum
import functools
import types
from typing import Any

import torch

PARTS = ("", "moe_kernel", "moe_kernel.impl", "moe_kernel.fused_experts")
"""Attribute paths, from a quantisation method, of the objects that hold its kernel's state."""

PLAIN = (bool, int, float, str, enum.Enum, torch.dtype, torch.device)
"""Types of values that must be equal; for most other types, having the same type is enough."""

MISSING = object()


def differences(method: Any, other: Any) -> list[str]:
    """Paths of the attributes in which two quantisation methods or their kernels differ."""
    return [
        f"{part}.{name}".lstrip(".")
        for part in PARTS
        for name in _differing(_state(method, part), _state(other, part))
    ]


def _state(method: Any, part: str) -> dict[str, Any]:
    found = method
    for name in filter(None, part.split(".")):
        found = getattr(found, name, None)
    return vars(found) if hasattr(found, "__dict__") else {}


def _differing(state: dict[Any, Any], other: dict[Any, Any]) -> list[Any]:
    return [
        name
        for name in sorted(state.keys() | other.keys(), key=str)
        if not are_alike(state.get(name, MISSING), other.get(name, MISSING))
    ]


def are_alike(one: Any, other: Any) -> bool:
    """Objects of which each kernel has its own, such as tensors, need only have the same type."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, functools.partial):
        parts = "func", "args", "keywords"
        return all(are_alike(getattr(one, part), getattr(other, part)) for part in parts)
    if isinstance(one, dict):
        return not _differing(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(are_alike, one, other))
    if isinstance(one, set | frozenset):
        return bool(one == other)
    if isinstance(one, types.MethodType):
        return one.__func__ is other.__func__
    if isinstance(one, types.FunctionType):
        return one.__code__ is other.__code__
    return not isinstance(one, PLAIN) or bool(one == other)
