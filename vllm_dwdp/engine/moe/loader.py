# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""vLLM's default loader, with which each MoE layer loads only the rows of the rank's own experts.

* A checkpoint holds experts one by one, or fused: all experts of a layer in one tensor. The layers
  pick their rows, whatever a tensor is called; only gpt-oss's go by names, see gpt_oss_layer.py.
  The loader skips only the tensors that no layer of the rank can need.
* A tensor from a safetensors file points into the mapped file. So of a fused tensor a rank reads
  only the rows that it copies, and what the operating system reads ahead. See `ReadCount`.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.moe.context import MoeContext, context
from vllm_dwdp.engine.moe.expert_filter import experts_to_read
from vllm_dwdp.engine.moe.input_scales import fill_dummy_scales
from vllm_dwdp.engine.moe.layer_classes import own_ways
from vllm_dwdp.engine.moe.read_count import NUMBERED
from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts

logger = init_logger("vllm.dwdp")

LOAD_FORMAT = "dwdp"
OF_EXPERTS = re.compile("expert|moe")
READ_WHOLE = ("eager", "prefetch")
"""vLLM's strategies for safetensors files that read every file from its beginning to its end."""


class DwdpModelLoader(DefaultModelLoader):
    """Reads files of the format that the user chose."""

    def __init__(self, load_config: Any) -> None:
        # By default vLLM reads all of every file that lies on a network file system.
        strategy = load_config.safetensors_load_strategy or "lazy"
        super().__init__(
            dataclasses.replace(
                load_config,
                load_format=context().inner_format,
                safetensors_load_strategy=strategy,
            )
        )
        self._is_draft = False
        self._is_mapped = False
        self._tensor = ("", torch.Size())

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        """Load the weights of the model or, in a later call, of a draft model.

        Each rank loads a draft model in full, with all of its experts. Raises ConfigError for a
        model that dwdp doesn't support, and ValueError for a damaged checkpoint.
        """
        self._model = model
        self._is_draft = context().is_complete
        if self._is_draft:
            super().load_weights(model, model_config)
            log_draft(model)
            return
        check_layers(model)
        context().before_loading(model)
        try:
            super().load_weights(model, model_config)
        except IndexError:
            self._check_rows()
            raise
        check_loaded(model, context().layers)
        context().is_complete = True

    def get_all_weights(
        self, model_config: Any, model: torch.nn.Module
    ) -> Iterator[tuple[str, torch.Tensor]]:
        read_count, on_step = context().read_count, context().on_step
        for name, tensor in super().get_all_weights(model_config, model):
            self._tensor = name, tensor.shape
            on_step(f"past {name}")
            yield from self._parts(name, tensor)
            if self._is_draft:
                continue
            if read_count.close(name, tensor.nbytes, is_mapped=self._is_mapped):
                self._check_rows()

    def _parts(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """What the model gets in the place of a tensor of the checkpoint, in most models itself."""
        if self._is_draft:
            yield name, tensor
        else:
            yield from context().layers[0].parts(name, tensor)

    def _prepare_weights(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM calls this for the files of a source, right before it reads them."""
        prepared = super()._prepare_weights(*args, **kwargs)
        _, files, is_safetensors, *_ = prepared
        strategy = self.load_config.safetensors_load_strategy
        by_threads = self.load_config.model_loader_extra_config.get("enable_multithread_load")
        self._is_mapped = is_safetensors and strategy not in READ_WHOLE and not by_threads
        self.local_expert_ids = (
            experts_to_read(files, self._model, context().layers)
            if self._is_mapped and not self._is_draft
            else None
        )
        return prepared

    def _check_rows(self) -> None:
        """Raise ValueError if the tensor that is loading is fused and not of all experts."""
        name, shape = self._tensor
        counts = {layer.global_num_experts for layer in context().layers}
        is_fused = len(shape) == 3 and OF_EXPERTS.search(name) and not NUMBERED.search(name)
        if is_fused and shape[0] not in counts:
            raise ValueError(
                f"expected {' or '.join(map(str, sorted(counts)))} experts in the checkpoint's "
                f"'{name}', got {shape[0]} in {list(shape)}; use a complete checkpoint that fits "
                "its configuration."
            )


class DwdpDummyLoader(DummyModelLoader):
    """Makes up weights, with activation scales that are the same on every rank."""

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        super().load_weights(model, model_config)
        if not context().is_complete:
            for layer in context().layers:
                fill_dummy_scales(layer._parameters)
            context().is_complete = True


def use_dwdp_loader(load_config: Any, moe_context: MoeContext) -> None:
    """Make `load_config` select DwdpModelLoader or, for load format 'dummy', DwdpDummyLoader."""
    if load_config.load_format == "dummy":
        register_model_loader("dummy")(DwdpDummyLoader)
        return
    if load_config.load_format == LOAD_FORMAT:
        return
    moe_context.inner_format = load_config.load_format
    register_model_loader(LOAD_FORMAT)(DwdpModelLoader)
    load_config.load_format = LOAD_FORMAT


def check_layers(model: torch.nn.Module) -> None:
    """Raise ConfigError if dwdp can't share a MoE layer of the model, or if it has none."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        why = ""
        if isinstance(module, RoutedExperts) and not isinstance(module, DwdpRoutedExperts):
            why = f", which has {', '.join(own_ways(type(module)))} of its own"
        if why or "MegaMoE" in kind:
            raise ConfigError(
                f"dwdp doesn't support the MoE layer {kind} of '{name}' yet{why}; serve this model "
                "without dwdp."
            )
    if not context().layers:
        raise ConfigError(
            f"dwdp found no MoE layer that it can share in {type(model).__name__}; "
            "serve this model without dwdp."
        )


def log_draft(model: torch.nn.Module) -> None:
    """Say how much memory the experts of a draft model take on every rank."""
    layers = [m for m in model.modules() if isinstance(m, RoutedExperts)]
    num_bytes = sum(p.nbytes for layer in layers for p in layer.parameters(recurse=False))
    if layers:
        logger.info(
            "every rank has all experts of the draft model %s, %.3f GB; dwdp shares those of the "
            "model itself.",
            type(model).__name__,
            num_bytes / 1e9,
        )


def check_loaded(model: torch.nn.Module, layers: Iterable[DwdpRoutedExperts]) -> None:
    """Raise ConfigError if this rank loaded no expert, ValueError if one of its own isn't whole."""
    if all(layer.loaded_rows.is_empty for layer in layers):
        raise ConfigError(
            f"dwdp saw no expert weight pass vLLM's weight_loader: either the checkpoint has none, "
            f"or {type(model).__name__} loads experts in a way of its own, which dwdp doesn't "
            "support; check the checkpoint, or serve this model without dwdp."
        )
    for layer in layers:
        layer.complete_loading()
