# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Notes what a kernel of local experts holds, so that one of all experts can hold the same.

A view of a layer's tensor is noted by where it lies there; the same view of another tensor can then
be made. Anything else is noted as it is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.moe.kernel.expert_rows import ExpertRows, owner_of


class ViewOfRows(NamedTuple):
    """A view of a layer's tensor. axis: that of the experts; offset, strides: in elements."""

    rows_idx: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    axis: int

    def over(self, tensor: torch.Tensor, num_experts: int) -> torch.Tensor:
        """The same view of a tensor with so many experts."""
        start = tensor.storage_offset() * tensor.dtype.itemsize // self.dtype.itemsize
        shape = (*self.shape[: self.axis], num_experts, *self.shape[self.axis + 1 :])
        return torch.empty(0, dtype=self.dtype, device=tensor.device).set_(
            tensor.detach().untyped_storage(), start + self.offset, shape, self.strides
        )


class KernelNotes:
    """Takes notes on the kernel of one layer.

    kernel: what errors call it. rows: the layer's tensors of experts; tensors: those.
    """

    def __init__(
        self, kernel: str, rows: Sequence[ExpertRows], tensors: Sequence[torch.Tensor]
    ) -> None:
        self._kernel = kernel
        self._rows = rows
        self._tensors = tensors

    def is_view(self, value: torch.Tensor) -> bool:
        """Whether a tensor shows memory of one of the layer's tensors."""
        return owner_of(value, self._tensors) is not None

    def take(self, name: str, value: Any) -> Any:
        """The note on a value that the kernel holds by this name.

        Raises ConfigError for rows of experts that are no view of the layer's tensors.
        """
        if not isinstance(value, torch.Tensor):
            return value
        if (owner := owner_of(value, self._tensors)) is not None:
            return self._view(value, owner)
        if self._may_be_rows(value):
            raise ConfigError(
                f"{self._kernel} keeps rows of experts in '{name}' that are no view of the layer's "
                "tensors; choose another kernel with --moe-backend, or serve this model without "
                "dwdp."
            )
        return value

    def _view(self, value: torch.Tensor, owner: int) -> ViewOfRows:
        rows, size = self._rows[owner], value.dtype.itemsize
        axis, strides = _axis_of_rows(value, rows), list(value.stride())
        strides[axis] = rows.row_bytes // size
        offset = (value.data_ptr() - self._tensors[owner].data_ptr()) // size
        return ViewOfRows(owner, value.dtype, tuple(value.shape), tuple(strides), offset, axis)

    def _may_be_rows(self, value: torch.Tensor) -> bool:
        """Whether a tensor may be a copy of rows. With one local expert, much else is [1]."""
        if not value.numel():
            return False
        if any(value.dim() > 1 and value.shape == rows.shape for rows in self._rows):
            return True
        return value.dim() > 0 and value.shape[0] == self._rows[0].num_experts > 1


def show(note: Any, tensors: Sequence[torch.Tensor], num_experts: int) -> Any:
    """What a note stands for. tensors: those of so many experts, in the order of rows."""
    if isinstance(note, ViewOfRows):
        return note.over(tensors[note.rows_idx], num_experts)
    return note


def _axis_of_rows(view: torch.Tensor, rows: ExpertRows) -> int:
    sizes = zip(view.shape, view.stride(), strict=True)
    for axis, (size, stride) in enumerate(sizes):
        is_row = stride * view.dtype.itemsize == rows.row_bytes or size == 1
        if size == rows.num_experts and is_row:
            return axis
    raise ConfigError(
        f"expected a view of '{rows.name}' with {rows.num_experts} experts on an axis, got shape "
        f"{tuple(view.shape)} with strides {view.stride()}; serve this model without dwdp."
    )
