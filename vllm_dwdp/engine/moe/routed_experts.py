# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""dwdp's MoE layer: vLLM's layer, which loads the rank's own experts and runs on all experts."""

import copy
import functools
import re
import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

from vllm_dwdp.config import ConfigError, FetchMode
from vllm_dwdp.engine.compat import mark_as_behind_a_link
from vllm_dwdp.engine.moe.context import context
from vllm_dwdp.engine.moe.expert_map import DwdpExpertMap
from vllm_dwdp.engine.moe.input_scales import InputScales, scale_of_layer
from vllm_dwdp.engine.moe.kernel.expert_rows import (
    ExpertRows,
    FindAxis,
    by_size,
    expert_rows,
    replicated_tensors,
)
from vllm_dwdp.engine.moe.kernel.holders import held_tensors
from vllm_dwdp.engine.moe.kernel.layer_tensors import LayerTensors
from vllm_dwdp.engine.moe.kernel.reader_state import differences
from vllm_dwdp.engine.moe.kernel.recipe import refuse_unshared
from vllm_dwdp.engine.moe.kernel.tried_pairs import is_tried
from vllm_dwdp.engine.moe.layer_plan import LayerPlan
from vllm_dwdp.engine.moe.loaded_rows import LoadedRows
from vllm_dwdp.engine.moe.read_only import REPLACED, ReadOnlyParameter, ReadOnlyWeight
from vllm_dwdp.fetch.base import ChosenIds

WEIGHT = re.compile("(w13|w2)_(weight|qweight|weight_packed)")
"""Names of parameters that only the checkpoint fills; vLLM initialises all others."""

KERNEL_WEIGHTS = ("w13_weight", "w2_weight")
"""Names by which kernels find the weights, whatever the checkpoint calls them."""

COPYING_MODES = (FetchMode.PREFETCH, FetchMode.SELECTIVE)


class DwdpRoutedExperts(RoutedExperts):
    """This layer is loaded with local experts only, then adopted, then bound to views of all.

    A reader is a copy of the layer for one set of views: one reads in place, another from slots.
    Construction raises ConfigError if dwdp can't share the layer's weights.
    """

    TRANSPOSED: frozenset[str] = frozenset()
    """The matrices of an expert that the checkpoint has as [inputs, outputs]."""

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
        plan = LayerPlan.note(
            layer_name, params_dtype, moe_config, quant_config, expert_map_manager, kwargs
        )
        moe_config.num_local_experts = len(local)
        super().__init__(
            layer_name,
            params_dtype,
            moe_config,
            quant_config,
            expert_map_manager=DwdpExpertMap(expert_map_manager, placement.num_experts, local),
            **kwargs,
        )
        self.placement = placement
        self.local_experts = local
        self.plan = plan
        self.is_bound = False
        self._readers: dict[FetchMode, DwdpRoutedExperts] = {}
        self.loaded_rows = LoadedRows(layer_name, local, moe_config, self.TRANSPOSED)
        self.input_scales = InputScales(self.global_num_experts)
        self._read_count = own_context.read_count
        self._untried_kinds = own_context.untried_kinds
        refuse_unshared(layer_name, getattr(self.quant_method, "experts_cls", None))
        if own_context.loads_on_host:
            self._load_on_host()
        self.dwdp_layer_idx = own_context.add(self)

    def expert_rows(self) -> list[ExpertRows]:
        """The layer's tensors with rows of its local experts, as they are now.

        Raises ConfigError for a tensor that dwdp can't share.
        """
        return expert_rows(self, len(self.local_experts), self._find_axis())

    def replicated_tensors(self) -> dict[str, torch.Tensor]:
        """The layer's other tensors by name, as they are now. Raises ConfigError: see above."""
        return replicated_tensors(self, self.expert_rows())

    def _find_axis(self) -> FindAxis:
        """What finds the axes of experts: small layers of an untried kind, or the sizes.

        A layer has no kernel until it is processed. What is asked before, to estimate memory, goes
        by sizes.
        """
        if self.quant_method.moe_kernel is None or is_tried(self):
            return functools.partial(by_size, num_local=len(self.local_experts))
        return self._untried_kinds.find_axis(self)

    @classmethod
    def stock_class(cls) -> type[RoutedExperts]:
        """vLLM's own class of such layers."""
        own = (base for base in cls.__mro__ if not issubclass(base, DwdpRoutedExperts))
        return next(own)

    def expert_tensor_ids(self) -> set[int]:
        """`id` of every tensor with rows of local experts, of all that show the same memory."""
        held = held_tensors(self)
        return {id(held[place]) for rows in self.expert_rows() for place in rows.places}

    def tensors_of(self, rows: Sequence[ExpertRows]) -> list[torch.Tensor]:
        held = held_tensors(self)
        return [held[one.places[0]] for one in rows]

    def _load_on_host(self) -> None:
        """Keep the layer's experts in host memory while they are loaded.

        To process such a layer, vLLM moves it to the GPU and back. Scales and biases keep the
        values that vLLM has given them.

        Raises ConfigError if vLLM makes the weights only as it loads them, to quantise them.
        """
        if any(tensor.is_meta for tensor in held_tensors(self).values()):
            raise ConfigError(
                f"{self.layer_name}: dwdp.host_experts needs weights that are loaded as they are, "
                f"{type(self.quant_method).__name__} quantises them; use a quantised checkpoint, "
                "or leave dwdp.host_experts out."
            )
        rows = self.expert_rows()
        for one, tensor in zip(rows, self.tensors_of(rows), strict=True):
            if WEIGHT.fullmatch(one.name):
                tensor.data = torch.empty_like(tensor.data, device="cpu")
            else:
                tensor.data = tensor.data.cpu()

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
        names = [name for name, p in self._parameters.items() if p is param]
        is_weight = any(map(WEIGHT.fullmatch, names))
        if is_weight:
            shards, experts = self.held_by(loaded_weight, shard_id, expert_id)
            self.loaded_rows.check(shards, experts, loaded_weight, param)
        load = super().weight_loader
        if (name := scale_of_layer(names, self.quant_method)) is not None:
            first = self.local_experts.start
            self.input_scales.load(
                name,
                param,
                expert_id,
                lambda scale: load(scale, loaded_weight, weight_name, shard_id, first),
            )
        is_local = load(param, loaded_weight, weight_name, shard_id, expert_id, return_success=True)
        if is_local and is_weight:
            self.loaded_rows.note(shards, experts)
        if is_local:
            self._read_count.take(loaded_weight.nbytes)
        return is_local if return_success else None

    weight_loader.supports_moe_loading = True  # type: ignore[attr-defined]

    def parts(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """What vLLM's model gets in the place of a tensor of the checkpoint: here, itself."""
        yield name, tensor

    def held_by(
        self, weight: torch.Tensor, shard_id: str, expert_id: int
    ) -> tuple[tuple[str, ...], range]:
        """What a tensor of the checkpoint holds, as LoadedRows names it.

        These are matrices of an expert, of w1, w2 and w3, and the global numbers of experts, of
        which vLLM gives the first. A tensor with three axes has several.
        """
        num_experts = len(weight) if weight.dim() == 3 else 1
        return (shard_id,), range(expert_id, expert_id + num_experts)

    def complete_loading(self) -> None:
        """Called when the checkpoint is read. Raises ValueError if an expert isn't whole."""
        self.loaded_rows.check_complete()
        self.input_scales.complete(self._parameters)

    def register_parameter(self, name: str, param: torch.nn.Parameter | None) -> None:
        """As in torch.nn.Module; raises ReadOnlyWeight once the layer is bound."""
        if self.__dict__.get("is_bound"):
            raise ReadOnlyWeight(REPLACED.format(name=f"{self.layer_name}.{name}"))
        super().register_parameter(name, param)

    @property
    def rows(self) -> Sequence[ExpertRows]:
        """The layer's tensors of experts, in the order of the views of `bind` and `bind_slot`."""
        return self._tensors.rows

    def release(self, rows: Sequence[ExpertRows]) -> None:
        """Let go of the local experts, which have been copied, and of the kernel that runs them.

        rows: from `expert_rows`. Raises ConfigError if that kernel can't be made again.
        """
        self._tensors = LayerTensors(self, rows)

    def bind(self, views: Sequence[torch.Tensor]) -> None:
        """Run on `views` [num_experts, ...] from now on, one for each of the rows of `release`.

        Kernels hold the layer's Parameter objects, so these are kept and get the views as their
        data. Other code that looks up the layer's parameters gets aliases that refuse writes.

        Raises ConfigError if something still shows local experts only, see kernel/self_check.py, or
        if the kernel, made again for all experts, runs shared experts itself.
        """
        bound = self._tensors.show(self, views)
        self._check_kernel()
        self.is_bound = True
        direct = self._reader()
        self._readers = {FetchMode.DIRECT: direct}
        for name, parameter, view in bound:
            if self._parameters[name] is parameter:  # a method may have made another one of it
                self._parameters[name] = ReadOnlyParameter.over(view, like=parameter)
        if len(self.local_experts) < self.global_num_experts or self.placement.host_experts:
            for weight in filter(torch.is_tensor, map(direct._parameters.get, KERNEL_WEIGHTS)):
                mark_as_behind_a_link(weight)

    def bind_slot(self, slot_views: Sequence[torch.Tensor]) -> None:
        """Run on `slot_views` in the modes that copy.

        They show the same tensors as those of `bind`, with a slot in the place of peers' memory.
        """
        reader = self._reader()
        reader._modules = dict(self._modules)
        reader.quant_method = _copy_method(self.quant_method)
        reader.is_bound = False  # a method may register parameters that it makes of others
        self._tensors.show_on(reader, slot_views)
        reader.is_bound = True
        self._readers |= dict.fromkeys(COPYING_MODES, reader)

    def unbind_slot(self) -> None:
        """Undo `bind_slot`: run in place only."""
        for mode in COPYING_MODES:
            self._readers.pop(mode, None)

    def settle_readers(self) -> None:
        """Give every reader the attributes that vLLM has set on this layer since it was bound.

        Raises ConfigError if vLLM has changed this layer's kernel too: readers keep theirs.
        """
        own = {"_parameters", "_modules", "_readers", "quant_method"}
        own |= {place[0] for rows in self.rows for place in rows.places}
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

    def _reader(self) -> "DwdpRoutedExperts":
        """A copy of this layer for its kernel to run on, with its own parameters."""
        reader = copy.copy(self)
        reader._parameters = dict(self._parameters)
        return reader

    def _check_kernel(self) -> None:
        if self.quant_method.mk_can_overlap_shared_experts:
            raise ConfigError(
                f"{self.layer_name}: dwdp needs a kernel that leaves shared experts to vLLM's "
                f"runner, {type(self.quant_method.moe_kernel.fused_experts).__name__} runs them "
                "itself; serve this model without dwdp."
            )


def _copy_method(method: Any) -> Any:
    """A copy that can hold a kernel of its own.

    vLLM's CustomOp has bound `_forward_method` to the original; the copy's is bound to the copy.
    """
    made = copy.copy(method)
    if bound := getattr(method, "_forward_method", None):
        made._forward_method = types.MethodType(bound.__func__, made)
    return made
