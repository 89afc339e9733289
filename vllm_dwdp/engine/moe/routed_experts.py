# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""dwdp's MoE layer: vLLM's layer, which loads the rank's own experts and runs on all experts."""

import copy
import types
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.model_executor.layers.quantization.fp8 import Fp8MoEMethod

from vllm_dwdp.config import ConfigError, FetchMode
from vllm_dwdp.engine.compat import mark_as_behind_a_link
from vllm_dwdp.engine.moe.context import context
from vllm_dwdp.engine.moe.expert_map import DwdpExpertMap
from vllm_dwdp.engine.moe.loaded_rows import LoadedRows
from vllm_dwdp.engine.moe.read_only import REPLACED, ReadOnlyParameter, ReadOnlyWeight
from vllm_dwdp.engine.moe.reader_state import differences
from vllm_dwdp.fetch.base import ChosenIds

EXPERT_TENSORS = (
    *("w13_weight", "w2_weight", "w13_bias", "w2_bias"),
    *("w13_weight_scale", "w2_weight_scale", "w13_weight_scale_inv", "w2_weight_scale_inv"),
)
"""Names of the expert tensors of the supported methods. A layer with unknown names is refused."""

METHODS = {
    UnquantizedFusedMoEMethod: ("unquantized_backend", ("CPU", "TRITON")),
    Fp8MoEMethod: ("fp8_backend", ("TRITON",)),
}
"""The quantisation methods whose kernels `bind` can rebuild. For each: the attribute that names the
kernel's backend, and the backends that keep the weights as loaded, one row per expert."""

LOADED_WEIGHTS = ("w13_weight", "w2_weight")
"""Expert tensors that only the checkpoint fills; vLLM initialises all others."""

INPUT_SCALES = ("w13_input_scale", "w2_input_scale")
COPYING_MODES = (FetchMode.PREFETCH, FetchMode.SELECTIVE)
NOT_EXPERT_TENSORS = ("e_score_correction_bias", *INPUT_SCALES)


class DwdpRoutedExperts(RoutedExperts):
    """This layer is loaded with local experts only, then adopted, then bound to views of all.

    A reader is a copy of the layer for one set of views: one reads in place, another from slots.
    Construction raises ConfigError if dwdp can't share the layer's weights.
    """

    def __init__(
        self,
        layer_name: str,
        params_dtype: torch.dtype,
        moe_config: Any,
        quant_config: Any,
        expert_map_manager: Any,
        **kwargs: Any,
    ) -> None:
        own_context = context()
        placement = own_context.placement(moe_config.num_experts)
        local = placement.local_experts(own_context.rank)
        moe_config.num_local_experts = len(local)
        super().__init__(
            layer_name,
            params_dtype,
            moe_config,
            quant_config,
            expert_map_manager=DwdpExpertMap(expert_map_manager, placement, own_context.rank),
            **kwargs,
        )
        self.placement = placement
        self.local_experts = local
        self.is_bound = False
        self._readers: dict[FetchMode, DwdpRoutedExperts] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.full_shapes: dict[str, tuple[int, ...]] = {}
        self.loaded_rows = LoadedRows(layer_name, local, moe_config)
        self._read_count = own_context.read_count
        self._check_supported()
        if own_context.loads_on_host:
            self._load_on_host()
        self.dwdp_layer_idx = own_context.add(self)

    def expert_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The layer's expert tensors by name, in the order of EXPERT_TENSORS."""
        found = dict(self.named_parameters(recurse=False))
        return {name: found[name] for name in EXPERT_TENSORS if name in found}

    def _load_on_host(self) -> None:
        """Keep the layer's experts in host memory while they are loaded.

        To process such a layer, vLLM moves it to the GPU and back. Scales and biases keep the
        values that vLLM has given them.
        """
        for name, parameter in self.expert_parameters().items():
            if name in LOADED_WEIGHTS:
                parameter.data = torch.empty_like(parameter.data, device="cpu")
            else:
                parameter.data = parameter.data.cpu()

    def input_scales(self) -> dict[str, torch.nn.Parameter]:
        """Static activation scales by name; each is one number after vLLM has processed it."""
        found = dict(self.named_parameters(recurse=False))
        return {name: found[name] for name in INPUT_SCALES if name in found}

    def weight_loader(
        self,
        param: torch.nn.Parameter,
        loaded_weight: torch.Tensor,
        weight_name: str,
        shard_id: str,
        expert_id: int,
        return_success: bool = False,
    ) -> bool | None:
        """Load with vLLM's `weight_loader`; also notes which experts are loaded, and their bytes.

        Raises ReadOnlyWeight once the layer is bound, and ValueError for a weight that doesn't fit.
        """
        if self.is_bound:
            raise ReadOnlyWeight(
                f"{self.layer_name}: expert weights are shared read-only by the dwdp group; "
                "restart the ranks to load others."
            )
        is_weight = any(self._parameters.get(name) is param for name in LOADED_WEIGHTS)
        if is_weight:
            self.loaded_rows.check(shard_id, expert_id, loaded_weight)
        is_local = super().weight_loader(
            param, loaded_weight, weight_name, shard_id, expert_id, return_success=True
        )
        if is_local and is_weight:
            self.loaded_rows.note(shard_id, expert_id, loaded_weight)
        if is_local:
            self._read_count.take(loaded_weight.nbytes)
        return is_local if return_success else None

    weight_loader.supports_moe_loading = True  # type: ignore[attr-defined]

    def register_parameter(self, name: str, param: torch.nn.Parameter | None) -> None:
        """As in torch.nn.Module; raises ReadOnlyWeight once the layer is bound."""
        if self.__dict__.get("is_bound"):
            raise ReadOnlyWeight(REPLACED.format(name=f"{self.layer_name}.{name}"))
        super().register_parameter(name, param)

    def bind(self, views: dict[str, torch.Tensor]) -> None:
        """Run on `views` from now on: by name of the expert tensor, a tensor [num_experts, ...].

        Kernels hold the layer's Parameter objects, so these are kept and get the views as their
        data. Other code that looks up the layer's parameters gets aliases that refuse writes.

        Raises ConfigError if the kernel, rebuilt for all experts, runs shared experts itself.
        """
        parameters = self.expert_parameters()
        for name, parameter in parameters.items():
            parameter.data = views[name]
        self.moe_config.num_local_experts = self.global_num_experts
        if "num_experts" in vars(self):  # as quantised methods note it
            self.num_experts = self.global_num_experts
        self.expert_map_manager.show_all()
        self.update_expert_map_info()
        _rebuild_kernel(self)
        self._check_kernel()
        self.is_bound = True
        self._readers = {FetchMode.DIRECT: self._reader(parameters)}
        for name, parameter in parameters.items():
            self._parameters[name] = ReadOnlyParameter.over(views[name], like=parameter)
        if len(self.local_experts) < self.global_num_experts or self.placement.host_experts:
            for name in LOADED_WEIGHTS:
                mark_as_behind_a_link(parameters[name])

    def bind_slot(self, slot_views: dict[str, torch.Tensor]) -> None:
        """Run on `slot_views` in the modes that copy.

        They show the same tensors as those of `bind`, with a slot in the place of peers' memory.
        """
        on_slot = {
            name: torch.nn.Parameter(view, requires_grad=False) for name, view in slot_views.items()
        }
        reader = self._reader(on_slot)
        reader._modules = dict(self._modules)
        reader.quant_method = _copy_method(self.quant_method)
        _rebuild_kernel(reader)  # a kernel keeps the biases and scales of its views
        self._readers |= dict.fromkeys(COPYING_MODES, reader)

    def unbind_slot(self) -> None:
        """Undo `bind_slot`: run in place only."""
        for mode in COPYING_MODES:
            self._readers.pop(mode, None)

    def settle_readers(self) -> None:
        """Give every reader the attributes that vLLM has set on this layer since it was bound.

        Raises ConfigError if vLLM has changed this layer's kernel too: readers keep theirs.
        """
        own = ("_parameters", "_modules", "_readers", "quant_method")
        changed = {name: value for name, value in vars(self).items() if name not in own}
        for mode, reader in self._readers.items():
            reader.__dict__.update(changed)
            if differing := differences(self.quant_method, reader.quant_method):
                raise ConfigError(
                    f"{self.layer_name}: expected the kernel of fetch mode '{mode}' to be set up "
                    f"like the layer's own, got differences in {', '.join(differing)}; drop the "
                    "option that sets them, or set dwdp.fetch to 'direct'."
                )

    def forward_modular(
        self,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any = None,
        shared_experts_input: torch.Tensor | None = None,
    ) -> Any:
        """Run the chosen experts; vLLM's runner runs the shared ones. See `_check_kernel`."""
        return torch.ops.vllm.dwdp_experts(x, topk_weights, topk_ids, self.dwdp_layer_idx)

    def forward_monolithic(
        self,
        x: torch.Tensor,
        router_logits: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
    ) -> Any:
        return torch.ops.vllm.dwdp_experts(x, router_logits, input_ids, self.dwdp_layer_idx)

    def run(
        self, mode: FetchMode, x: torch.Tensor, first: torch.Tensor, second: torch.Tensor | None
    ) -> torch.Tensor:
        """Run vLLM's kernel on x [num_tokens, hidden_size] and the views of a fetch mode.

        first, second: weights and ids of the chosen experts [num_tokens, top_k], or the router's
        logits [num_tokens, num_experts] and input ids if the kernel routes by itself.
        """
        reader = self._readers[mode]
        if self.quant_method.is_monolithic:
            return super(DwdpRoutedExperts, reader).forward_monolithic(x, first, second)
        return super(DwdpRoutedExperts, reader).forward_modular(x, first, second)

    def chosen(self, second: torch.Tensor | None) -> ChosenIds | None:
        """The router's choice; None if the kernel routes by itself, or if no slot can use it.

        second: see `run`.
        """
        if second is None or len(self._readers) == 1 or self.quant_method.is_monolithic:
            return None
        assert second.is_contiguous(), "vLLM's routers make dense ids"
        return ChosenIds(second.data_ptr(), second.numel(), second.element_size())

    def _reader(self, parameters: dict[str, torch.nn.Parameter]) -> "DwdpRoutedExperts":
        """A copy of this layer for its kernel to run on, with its own parameters."""
        reader = copy.copy(self)
        reader._parameters = {**self._parameters, **parameters}
        return reader

    def _check_kernel(self) -> None:
        if self.quant_method.mk_can_overlap_shared_experts:
            raise ConfigError(
                f"{self.layer_name}: dwdp needs a kernel that leaves shared experts to vLLM's "
                f"runner, {type(self.quant_method.moe_kernel.fused_experts).__name__} runs them "
                "itself; serve this model without dwdp."
            )

    def _check_supported(self) -> None:
        method = type(self.quant_method)
        if method not in METHODS:
            raise ConfigError(
                f"{self.layer_name}: dwdp can't rebuild the kernel of {method.__name__} yet; "
                "use an unquantised checkpoint."
            )
        attribute, backends = METHODS[method]
        if (backend := getattr(self.quant_method, attribute).name) not in backends:
            raise ConfigError(
                f"{self.layer_name}: dwdp can't share the weights of {method.__name__} as its "
                f"kernel {backend} keeps them; choose the kernel {backends[-1]} with "
                f"--moe-backend {backends[-1].lower()}."
            )
        known = {*EXPERT_TENSORS, *NOT_EXPERT_TENSORS}
        for name, parameter in self.named_parameters(recurse=False):
            if name not in known:
                raise ConfigError(
                    f"{self.layer_name}: dwdp doesn't know the parameter '{name}' "
                    f"{tuple(parameter.shape)} of {type(self.quant_method).__name__}; "
                    "serve this model without dwdp."
                )


def _copy_method(method: Any) -> Any:
    """A copy that can hold a kernel of its own.

    vLLM's CustomOp has bound `_forward_method` to the original; the copy's is bound to the copy.
    """
    made = copy.copy(method)
    if bound := getattr(method, "_forward_method", None):
        made._forward_method = types.MethodType(bound.__func__, made)
    return made


def _rebuild_kernel(layer: DwdpRoutedExperts) -> None:
    """Give a layer a new kernel for all experts, with the state of the old one.

    vLLM sets that state in `process_weights_after_loading`, which would also repack the weights.
    """
    old = layer.quant_method.moe_kernel.fused_experts
    layer.quant_method._init_moe_kernel(layer)
    new = layer.quant_method.moe_kernel.fused_experts
    for name, value in vars(old).items():
        vars(new).setdefault(name, value)
