# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Bound weights refuse writes with an error; the mapping itself would end the process.

Covers what Python can write with: in-place methods, item assignment and copies into `.data`.
"""

from typing import Any, NoReturn

import torch

PASSING = frozenset({"requires_grad_", "retain_grad_"})


class ReadOnlyWeight(RuntimeError):
    """Somebody wrote to an expert weight that peers read."""


def _refuse(self: torch.Tensor, *args: Any, **kwargs: Any) -> NoReturn:
    raise ReadOnlyWeight(
        f"expert weights {tuple(self.shape)} are shared read-only by the dwdp group; "
        "restart the ranks to change weights."
    )


def _writing_methods() -> list[str]:
    in_place = [
        name
        for name in dir(torch.Tensor)
        if name.endswith("_") and not name.startswith("_") and name not in PASSING
    ]
    operators = [
        name for name in dir(torch.Tensor) if name.startswith("__i") and name != "__init__"
    ]
    keep = {"__index__", "__int__", "__invert__", "__init_subclass__", "__iter__"}
    return [*in_place, *(name for name in operators if name not in keep), "__setitem__", "set_"]


class ReadOnlyTensor(torch.Tensor):
    """What `.data` of a bound weight gives: readable, every in-place method refused."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class ReadOnlyParameter(torch.nn.Parameter):
    """The class that a Parameter object takes on when its memory becomes a view."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property  # type: ignore[override]
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self).as_subclass(ReadOnlyTensor)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        _refuse(self)


for _name in _writing_methods():
    setattr(ReadOnlyTensor, _name, _refuse)
    setattr(ReadOnlyParameter, _name, _refuse)


def bind_parameter(parameter: torch.nn.Parameter, view: torch.Tensor) -> None:
    """Point a Parameter object at a view, for good. Whoever holds the object follows."""
    parameter.data = view
    parameter.__class__ = ReadOnlyParameter
