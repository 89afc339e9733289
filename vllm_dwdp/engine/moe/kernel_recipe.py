# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How a MoE layer's kernel was made of its local experts, to make it again of all experts.

* vLLM makes a kernel's experts object of a quantisation config, which it makes of the layer's
  tensors. Both steps are repeated. What processing did to the tensors is never repeated: it would
  repack them a second time.
* Processing may have hung more on the experts object: flags, and views of the layer's tensors. The
  flags are those in which the object differs from one that was just made of the same arguments.
"""

import inspect
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from vllm.model_executor.layers.fused_moe import modular_kernel as mk

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.moe.expert_rows import ExpertRows, owner_of
from vllm_dwdp.engine.moe.reader_state import are_alike
from vllm_dwdp.engine.moe.unshared_kernels import refuse_unshared

FROM_METHOD = ("moe_config", "quant_config")
"""Arguments of an experts object that its method has."""

_arguments: "weakref.WeakKeyDictionary[Any, dict[str, Any]]" = weakref.WeakKeyDictionary()
"""By experts object, the arguments that it was made of."""


def note_arguments() -> None:
    """From now on, remember what each experts object of this process is made of."""
    mk.FusedMoEExperts.__new__ = staticmethod(_noting)


def _noting(cls: Any, *args: Any, **kwargs: Any) -> Any:
    made: Any = object.__new__(cls)
    signature = inspect.signature(cls.__init__)
    given = dict(signature.bind(made, *args, **kwargs).arguments)
    given.pop(next(iter(given)))  # self
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    _arguments[made] = given
    return made


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
        source = tensor.detach()
        return torch.empty(0, dtype=self.dtype, device=source.device).set_(
            source.untyped_storage(), start + self.offset, shape, self.strides
        )


class KernelRecipe:
    """Makes the kernel of one layer again.

    rows: the layer's tensors of experts; tensors: those, which are the local ones when the recipe
    is made. Raises ConfigError for a layer whose kernel can't be made again.
    """

    def __init__(
        self, layer: Any, rows: Sequence[ExpertRows], tensors: Sequence[torch.Tensor]
    ) -> None:
        method = layer.quant_method
        if method.moe_kernel is None:
            raise ConfigError(
                f"{layer.layer_name}: {type(method).__name__} has no kernel that dwdp could make "
                "again for all experts; serve this model without dwdp."
            )
        self._rows, self._tensors = list(rows), list(tensors)
        self._layer_name = layer.layer_name
        self._prepare_finalize = method.moe_kernel.prepare_finalize
        experts = method.moe_kernel.fused_experts
        self._experts_cls = type(experts)
        refuse_unshared(layer.layer_name, type(experts))
        given = _arguments[experts]
        self._given = {name: given[name] for name in given if name not in FROM_METHOD}
        fresh = type(experts)(**given)
        self._given = {name: self._noted(name, value) for name, value in self._given.items()}
        self._hung = {
            name: self._noted(name, value)
            for name, value in vars(experts).items()
            if self._is_hung(value, vars(fresh).get(name))
        }
        del self._tensors

    def make(self, layer: Any, tensors: Sequence[torch.Tensor]) -> None:
        """Give `layer` a kernel of its own. tensors: those of all experts, in the order of rows."""
        method = layer.quant_method
        method.moe_quant_config = method.get_fused_moe_quant_config(layer)
        given = {name: self._shown(value, layer, tensors) for name, value in self._given.items()}
        experts = self._experts_cls(
            moe_config=method.moe, quant_config=method.moe_quant_config, **given
        )
        for name, value in self._hung.items():
            vars(experts)[name] = self._shown(value, layer, tensors)
        method.moe_kernel = mk.FusedMoEKernel(self._prepare_finalize, experts)

    def _is_hung(self, value: Any, in_fresh: Any) -> bool:
        """Whether processing has set a value of an experts object."""
        if isinstance(value, torch.Tensor):
            return in_fresh is None or owner_of(value, self._tensors) is not None
        return not are_alike(value, in_fresh)

    def _noted(self, name: str, value: Any) -> Any:
        """A value of the old kernel; a view of experts' rows as ViewOfRows."""
        if not isinstance(value, torch.Tensor) or not value.numel():
            return value
        owner = owner_of(value, self._tensors)
        if owner is None:
            if self._looks_like_rows(value):
                raise ConfigError(
                    f"{self._layer_name}: {self._experts_cls.__name__} keeps rows of experts in "
                    f"'{name}' that are no view of the layer's tensors; choose another kernel with "
                    "--moe-backend, or serve this model without dwdp."
                )
            return value
        rows, source = self._rows[owner], self._tensors[owner]
        axis = _axis_of_rows(value, rows)
        start = value.storage_offset() * value.dtype.itemsize
        start -= source.storage_offset() * source.dtype.itemsize
        strides = list(value.stride())
        strides[axis] = rows.row_bytes // value.dtype.itemsize
        offset = start // value.dtype.itemsize
        return ViewOfRows(owner, value.dtype, tuple(value.shape), tuple(strides), offset, axis)

    def _looks_like_rows(self, value: torch.Tensor) -> bool:
        """Whether a tensor may be a copy of rows. With one local expert, much else is [1]."""
        if any(value.dim() > 1 and value.shape == rows.shape for rows in self._rows):
            return True
        return value.dim() > 0 and value.shape[0] == self._rows[0].num_experts > 1

    @staticmethod
    def _shown(value: Any, layer: Any, tensors: Sequence[torch.Tensor]) -> Any:
        if isinstance(value, ViewOfRows):
            return value.over(tensors[value.rows_idx], layer.global_num_experts)
        return value


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
