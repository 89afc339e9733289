# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Tells which tensors of a MoE layer have a row for each expert, by two small layers of its kind.

* A tensor whose shape grows with the number of experts has rows of experts. One whose shape stays
  the same has none, whatever its sizes are.
* The shape of a tensor of the layer itself must be the one that follows from the small layers. If
  it isn't, the start ends: to guess would let a kernel read other experts' weights.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.moe.kernel.holders import Place

FEW, MORE = 2, 3
"""Numbers of experts of the two small layers."""


class Form(NamedTuple):
    """A tensor's type and sizes."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Form":
        return cls(tensor.dtype, tuple(tensor.shape))

    def grown(self, axis: int | None, num_experts: int) -> "Form":
        """The form with so many experts on an axis, if this one has FEW of them there."""
        if axis is None:
            return self
        size = self.shape[axis] // FEW * num_experts
        return Form(self.dtype, (*self.shape[:axis], size, *self.shape[axis + 1 :]))

    def __str__(self) -> str:
        return f"{list(self.shape)} of {self.dtype}"


Forms = dict[Place, Form]


def forms(held: Mapping[Place, torch.Tensor]) -> Forms:
    return {place: Form.of(tensor) for place, tensor in held.items()}


class Growth(NamedTuple):
    """The forms of all tensors of two processed layers of one kind, with FEW and MORE experts."""

    few: Forms
    more: Forms

    def axis(self, place: Place, form: Form, num_experts: int) -> int | None:
        """The axis of experts of a layer's tensor in a place; None if the layers have it alike.

        Raises ValueError if the form of the tensor doesn't follow from the two layers.
        """
        few, more = self.few.get(place), self.more.get(place)
        if few is None or more is None:
            raise ValueError("is missing in a small layer of the same kind")
        sizes = list(zip(few.shape, more.shape, strict=False))
        axis = next((axis for axis, (size, larger) in enumerate(sizes) if size != larger), None)
        if few.grown(axis, MORE) != more or few.grown(axis, num_experts) != form:
            raise ValueError(f"is {few} with {FEW} experts, {more} with {MORE}")
        return axis


class AxisByGrowth:
    """Finds the axes of experts of one layer, see FindAxis in expert_rows.py.

    kind: what errors call the layer's method and kernel.
    """

    def __init__(self, layer_name: str, kind: str, growth: Growth, num_local: int) -> None:
        self._layer_name = layer_name
        self._kind = kind
        self._growth = growth
        self._num_local = num_local

    def __call__(self, place: Place, tensor: torch.Tensor) -> int | None:
        form = Form.of(tensor)
        try:
            return self._growth.axis(place, form, self._num_local)
        except ValueError as error:
            raise ConfigError(
                f"{self._layer_name}: dwdp can't tell whether '{'.'.join(place)}' of {self._kind} "
                f"has a row for each expert: it is {form} with {self._num_local} experts here, and "
                f"{error}; choose another kernel with --moe-backend, or serve this model without "
                "dwdp."
            ) from error
