# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How a MoE layer's kernel was made of its local experts, to make it again of all experts.

* vLLM makes a kernel's experts object of a quantisation config, which it makes of the layer's
  tensors. Both steps are repeated. What processing did to the tensors is never repeated: it would
  repack them a second time.
* Processing may have set more on the experts object: flags, and views of the layer's tensors. The
  flags are those in which the object differs from one that was just made of the same arguments.
"""

import inspect
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe import modular_kernel as mk

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.moe.kernel.expert_rows import ExpertRows
from vllm_dwdp.engine.moe.kernel.notes import KernelNotes, show
from vllm_dwdp.engine.moe.kernel.reader_state import are_alike
from vllm_dwdp.engine.setup.format_checks import why_unshared

FROM_METHOD = ("moe_config", "quant_config")
"""Arguments of an experts object that its method has."""

_arguments: "weakref.WeakKeyDictionary[Any, dict[str, Any]]" = weakref.WeakKeyDictionary()
"""By experts object, the arguments that it was made of."""


def refuse_unshared(layer_name: str, kernel: type | None) -> None:
    """Raise ConfigError if vLLM has chosen a class of kernels that can't run on all experts."""
    if kernel is not None and (why := why_unshared(kernel.__name__)):
        raise ConfigError(
            f"{layer_name}: dwdp can't run vLLM's kernel {kernel.__name__} on the experts of all "
            f"ranks: {why}."
        )


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


class KernelRecipe:
    """Makes the kernel of one layer again.

    rows: the layer's tensors of experts; tensors: those, which are the local ones when the recipe
    is made. Raises ConfigError for a layer whose kernel can't be made again.
    """

    def __init__(
        self, layer: Any, rows: Sequence[ExpertRows], tensors: Sequence[torch.Tensor]
    ) -> None:
        kernel = layer.quant_method.moe_kernel
        if kernel is None:
            raise ConfigError(
                f"{layer.layer_name}: {type(layer.quant_method).__name__} has no kernel that dwdp "
                "could make again for all experts; serve this model without dwdp."
            )
        experts, given = kernel.fused_experts, _arguments[kernel.fused_experts]
        self._experts_cls = type(experts)
        refuse_unshared(layer.layer_name, self._experts_cls)
        self._prepare_finalize = kernel.prepare_finalize
        fresh = vars(self._experts_cls(**given))
        notes = KernelNotes(f"{layer.layer_name}: {self._experts_cls.__name__}", rows, tensors)
        self._given = {
            name: notes.take(name, value)
            for name, value in given.items()
            if name not in FROM_METHOD
        }
        self._set_by_processing = {
            name: notes.take(name, value)
            for name, value in vars(experts).items()
            if _is_set_by_processing(value, fresh.get(name), notes)
        }

    def make(self, layer: Any, tensors: Sequence[torch.Tensor]) -> None:
        """Give `layer` a kernel of its own. tensors: those of all experts, in the order of rows."""
        method, num_experts = layer.quant_method, layer.global_num_experts
        method.moe_quant_config = method.get_fused_moe_quant_config(layer)
        given = {name: show(note, tensors, num_experts) for name, note in self._given.items()}
        experts = self._experts_cls(
            moe_config=method.moe, quant_config=method.moe_quant_config, **given
        )
        for name, note in self._set_by_processing.items():
            vars(experts)[name] = show(note, tensors, num_experts)
        method.moe_kernel = mk.FusedMoEKernel(self._prepare_finalize, experts)


def _is_set_by_processing(value: Any, in_fresh: Any, notes: KernelNotes) -> bool:
    """Whether vLLM has set a value of an experts object since it was made."""
    if isinstance(value, torch.Tensor):
        return in_fresh is None or notes.is_view(value)
    return not are_alike(value, in_fresh)
