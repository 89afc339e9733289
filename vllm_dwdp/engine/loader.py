# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""vLLM's default loader, reading only this rank's experts from disk.

Applies to checkpoints with one tensor per expert; fused ones ([num_experts, ...]) are read whole
and sliced by the layer. Multi-threaded, .bin and npcache reading is never filtered by vLLM.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.layer_registry import active_registry
from vllm_dwdp.engine.routed_experts import DwdpRoutedExperts

LOAD_FORMAT = "dwdp"


class DwdpModelLoader(DefaultModelLoader):
    """`inner_format` is the load format that the user chose."""

    inner_format = "auto"
    num_bytes_read = 0
    num_expert_bytes_read = 0

    def __init__(self, load_config: Any) -> None:
        super().__init__(dataclasses.replace(load_config, load_format=self.inner_format))
        self._is_draft = False

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        """Of the model, and after it of a draft without experts, which each rank loads whole."""
        check_layers(model)
        self._is_draft = not any(isinstance(m, DwdpRoutedExperts) for m in model.modules())
        super().load_weights(model, model_config)
        for layer in active_registry().layers:
            layer.check_loaded()

    def get_all_weights(
        self, model_config: Any, model: torch.nn.Module
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in super().get_all_weights(model_config, model):
            if not self._is_draft:
                type(self).num_bytes_read += tensor.nbytes
                type(self).num_expert_bytes_read += tensor.nbytes if ".experts." in name else 0
            yield name, tensor

    def _init_ep_weight_filter(self, model_config: Any) -> None:
        self.local_expert_ids = active_registry().local_expert_ids()


def use_dwdp_loader(load_config: Any) -> None:
    """Let this worker's `load_config` resolve to DwdpModelLoader. 'dummy' keeps vLLM's own."""
    if load_config.load_format in ("dummy", LOAD_FORMAT):
        return
    DwdpModelLoader.inner_format = load_config.load_format
    DwdpModelLoader.num_bytes_read = DwdpModelLoader.num_expert_bytes_read = 0
    register_model_loader(LOAD_FORMAT)(DwdpModelLoader)
    load_config.load_format = LOAD_FORMAT


def check_layers(model: torch.nn.Module) -> None:
    """Raise when the model has MoE layers that dwdp doesn't share, before weights are read."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        is_foreign = isinstance(module, RoutedExperts) and not isinstance(module, DwdpRoutedExperts)
        if is_foreign or "MegaMoE" in kind:
            raise ConfigError(
                f"dwdp doesn't support the MoE layer {kind} of '{name}' yet; "
                "serve this model without dwdp."
            )
    if not active_registry().layers:
        raise ConfigError(
            f"dwdp found no MoE layer that it can share in {type(model).__name__}; "
            "serve this model without dwdp."
        )
