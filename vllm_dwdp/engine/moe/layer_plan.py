# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What vLLM has made a MoE layer of, so that a small layer of the same kind can be made of it.

A small layer leaves no trace in the process: it is no part of the model or of dwdp's context, and
vLLM's settings, workspaces and random numbers are those of before.
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import get_current_vllm_config, set_current_vllm_config
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.v1.worker import workspace

from vllm_dwdp.engine.moe.expert_map import DwdpExpertMap


@dataclass(frozen=True)
class LayerPlan:
    """The arguments of one layer and the settings under which vLLM has made it.

    moe_config: a copy; making a layer changes vLLM's own. options: all other arguments by name.
    """

    layer_name: str
    params_dtype: torch.dtype
    moe_config: Any
    quant_config: Any
    expert_map_manager: Any
    options: dict[str, Any]
    vllm_config: Any
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def note(
        cls,
        layer_name: str,
        params_dtype: torch.dtype,
        moe_config: Any,
        quant_config: Any,
        expert_map_manager: Any,
        options: dict[str, Any],
    ) -> "LayerPlan":
        """To be called with a layer's arguments while vLLM makes it."""
        return cls(
            layer_name,
            params_dtype,
            copy.copy(moe_config),
            quant_config,
            expert_map_manager,
            options,
            get_current_vllm_config(),
            torch.get_default_dtype(),
            torch.get_default_device(),
        )

    def small_layer(self, stock: type[RoutedExperts], num_local: int, biases: set[str]) -> Any:
        """A processed layer of vLLM's class `stock` that owns num_local of the model's experts.

        Its parameters are filled with ones, those of integers with zeros. biases: the names of
        those that the checkpoint has; some methods drop others.
        """
        with self._isolated():
            with self.device:
                layer = self._build(stock, num_local)
            layer._loaded_expert_biases |= biases
            _fill(layer, self.device)
            layer.quant_method.process_weights_after_loading(layer)
        return layer

    def _build(self, stock: type[RoutedExperts], num_local: int) -> Any:
        moe_config = copy.copy(self.moe_config)
        num_experts = max(moe_config.num_experts, num_local)
        moe_config.num_experts, moe_config.num_local_experts = num_experts, num_local
        expert_map = DwdpExpertMap(self.expert_map_manager, num_experts, range(num_local))
        layer: Any = torch.nn.Module.__new__(stock)  # RoutedExperts.__new__ would make it dwdp's
        layer.__init__(
            self.layer_name,
            self.params_dtype,
            moe_config,
            self.quant_config,
            expert_map_manager=expert_map,
            **self.options,
        )
        return layer

    @contextlib.contextmanager
    def _isolated(self) -> Iterator[None]:
        """A context in which vLLM's global state is the layer's at first, and of no consequence."""
        on_gpu = [self.device] if self.device.type == "cuda" else []
        before = torch.get_default_dtype()
        with (
            torch.random.fork_rng(devices=on_gpu),
            set_current_vllm_config(_own_config(self.vllm_config)),
            _own_workspaces(),
        ):
            torch.set_default_dtype(self.dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(before)


def _fill(layer: Any, device: torch.device) -> None:
    """Fill a layer's parameters; those that vLLM makes only as it loads them are made now."""
    for name, parameter in layer._parameters.items():
        if parameter is None:
            continue
        if parameter.is_meta:
            data = torch.empty_like(parameter.data, device=device)
            made = torch.nn.Parameter(data, requires_grad=False)
            vars(made).update(vars(parameter))
            layer._parameters[name] = parameter = made
        parameter.data.fill_(1 if parameter.dtype.is_floating_point else 0)


def _own_config(vllm_config: Any) -> Any:
    """A copy of vLLM's settings whose lists of layers and counts of operators are its own."""
    made = copy.copy(vllm_config)
    compilation = copy.copy(vllm_config.compilation_config)
    for name, value in list(vars(compilation).items()):
        if isinstance(value, dict | list | set):
            object.__setattr__(compilation, name, copy.copy(value))
    compilation.static_forward_context.clear()
    object.__setattr__(made, "compilation_config", compilation)
    return made


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """A context with a manager of workspaces that is like vLLM's, and empty."""
    manager = workspace._manager
    if manager is not None:
        workspace._manager = copy.copy(manager)
        for name, value in vars(manager).items():
            if isinstance(value, list):  # of memory, or of dictionaries, of each stream
                empty: list[Any] = [{} if isinstance(one, dict) else None for one in value]
                setattr(workspace._manager, name, empty)
    try:
        yield
    finally:
        workspace._manager = manager
