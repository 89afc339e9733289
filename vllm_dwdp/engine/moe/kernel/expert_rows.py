# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Finds the tensors of a MoE layer that have a row for each of its local experts.

* For kinds of layers that dwdp's tests have tried, sizes tell them: see `by_size`. For others
  growth.py tells them by small layers of the same kind.
* Experts lie on the first axis, outermost in memory. Inside a row any order will do, and gaps: some
  kernels transpose rows, or pad them.
* triton_kernels keeps scales for Blackwell with a first axis of 1, and experts on the second.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.moe.kernel.holders import Place, held_tensors

ROUTER_TENSORS = {"e_score_correction_bias", "hash_indices_table"}
"""Tensors of the router, which vLLM gives the layer whole."""

WRAPPED = ("storage", "data")
"""The last names in the place of a tensor that an object of triton_kernels wraps."""

FindAxis = Callable[[Place, torch.Tensor], int | None]
"""Returns the axis of a tensor on which its local experts lie; None if it has no rows of experts.

Raises ConfigError if that can't be told.
"""


@dataclass(frozen=True)
class ExpertRows:
    """A tensor of a layer with rows of experts.

    places: where the layer holds it, see holders.py. axis: that of the experts. shape, strides: in
    elements, with num_experts experts: those of the rank, if not said otherwise.
    """

    places: tuple[Place, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    axis: int
    num_experts: int

    @property
    def name(self) -> str:
        return ".".join(self.places[0])

    @property
    def row_bytes(self) -> int:
        """Bytes from one expert to the next."""
        return self.strides[self.axis] * self._per_expert * self.dtype.itemsize

    @property
    def _per_expert(self) -> int:
        return self.shape[self.axis] // self.num_experts

    def with_experts(self, num_experts: int) -> "ExpertRows":
        """The same tensor with so many experts."""
        size = num_experts * self._per_expert
        whole = size * self.strides[self.axis]  # the stride of axes before, which have size 1
        return dataclasses.replace(
            self,
            shape=(*self.shape[: self.axis], size, *self.shape[self.axis + 1 :]),
            strides=(*[whole] * self.axis, *self.strides[self.axis :]),
            num_experts=num_experts,
        )

    def over(self, data: torch.Tensor) -> torch.Tensor:
        """The tensor over bytes `data` [num_experts * row_bytes]."""
        return data.view(self.dtype).as_strided(self.shape, self.strides)


def expert_rows(layer: torch.nn.Module, num_local: int, find_axis: FindAxis) -> list[ExpertRows]:
    """The layer's tensors with rows of its num_local experts, in the same order on every rank.

    Raises ConfigError for a tensor whose rows don't follow one another in memory, and for one whose
    axis of experts can't be told.
    """
    held = held_tensors(layer)
    places: dict[Any, list[Place]] = {}
    for place, tensor in held.items():
        if place[-1] not in ROUTER_TENSORS:
            places.setdefault(_memory_key(tensor), []).append(place)
    found = []
    for same in places.values():
        tensor = held[same[0]]
        if not tensor.dim() or not tensor.numel():
            continue
        if (axis := _axis_of_all(layer, tensor, same, find_axis)) is not None:
            found.append(_rows(layer, tensor, tuple(same), axis, num_local))
    return found


def replicated_tensors(
    layer: torch.nn.Module, rows: Sequence[ExpertRows]
) -> dict[str, torch.Tensor]:
    """The layer's other tensors by name. Every rank has its own, which must be the same.

    rows: from expert_rows.
    """
    of_experts = {place for one in rows for place in one.places}
    return {
        ".".join(place): tensor
        for place, tensor in held_tensors(layer).items()
        if place not in of_experts and tensor.numel()
    }


def _memory_key(tensor: torch.Tensor) -> Any:
    """Equal for two tensors if they show the same memory in the same way."""
    if not tensor.numel() or tensor.is_meta:
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def owner_of(view: torch.Tensor, tensors: Sequence[torch.Tensor]) -> int | None:
    """The index of the tensor out of whose memory a view begins; None if it is none's view."""
    if not view.numel():
        return None
    found = (idx for idx, tensor in enumerate(tensors) if _begins_in(view, tensor))
    return next(found, None)


def num_spanned(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements of memory from the first to the last of a tensor, with the gaps between them."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _begins_in(view: torch.Tensor, tensor: torch.Tensor) -> bool:
    span = num_spanned(tensor.shape, tensor.stride()) * tensor.itemsize
    return tensor.data_ptr() <= view.data_ptr() < tensor.data_ptr() + span


def by_size(place: Place, tensor: torch.Tensor, num_local: int) -> int | None:
    """The axis of experts of a tensor: the first, if it has as many elements as there are experts.

    A tensor without experts may have that size by accident; no kind of layer that dwdp's tests have
    tried has one.
    """
    shape = tensor.shape
    is_wrapped = place[-len(WRAPPED) :] == WRAPPED
    if is_wrapped and len(shape) > 1 and shape[0] == 1 and shape[1] % num_local == 0:
        # With three axes it isn't a scale for Blackwell, but a weight of one local expert.
        return 0 if num_local == 1 and len(shape) == 3 else 1
    return 0 if shape[0] == num_local else None


def _axis_of_all(
    layer: torch.nn.Module, tensor: torch.Tensor, places: Sequence[Place], find_axis: FindAxis
) -> int | None:
    """The axis of experts of a tensor that has all these places."""
    first, *others = axes = [find_axis(place, tensor) for place in places]
    if any(axis != first for axis in others):
        names = [".".join(place) for place in places]
        raise ConfigError(
            f"{layer.layer_name}: expected the tensors {names}, which show the same memory, to "
            f"have experts on the same axis, got {axes}; serve this model without dwdp."
        )
    return first


def _rows(
    layer: torch.nn.Module,
    tensor: torch.Tensor,
    places: tuple[Place, ...],
    axis: int,
    num_local: int,
) -> ExpertRows:
    shape, strides = tuple(tensor.shape), list(tensor.stride())
    per_expert = shape[axis] // num_local
    span = num_spanned(shape[axis + 1 :], strides[axis + 1 :])
    if shape[axis] == 1:  # the stride of such an axis counts only if rows are padded
        is_dense = span == math.prod(shape[axis + 1 :])
        strides[axis] = span if is_dense else max(strides[axis], span)
    rows = ExpertRows(places, tensor.dtype, shape, tuple(strides), axis, num_local)
    used = num_local * rows.row_bytes
    room = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.itemsize
    is_outermost = math.prod(shape[:axis]) == 1 and strides[axis] >= span
    if not is_outermost or per_expert * num_local != shape[axis] or used > room:
        raise ConfigError(
            f"{layer.layer_name}: expected the rows of {num_local} experts in '{rows.name}' one "
            f"after the other in memory, got shape {shape} with strides {tensor.stride()}; serve "
            "this model without dwdp."
        )
    return rows
