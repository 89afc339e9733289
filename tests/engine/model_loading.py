# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Models of one process, built and loaded by vLLM as it does in a worker, but never run."""

from typing import NamedTuple

import torch
from layer_group import as_rank
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from vllm_dwdp.engine.layer_registry import active_registry
from vllm_dwdp.engine.loader import DwdpModelLoader
from vllm_dwdp.engine.read_count import ReadCount


class RankLoad(NamedTuple):
    """What a rank holds: its share [local experts, ...] of each layer's tensors, by name."""

    experts: dict[str, dict[str, torch.Tensor]]
    local_experts: dict[str, range]
    read_count: ReadCount


def load_stock(folder, model_class=None, **options):
    """Expert tensors [experts, ...] by layer and name."""
    return _experts(_load(folder, DefaultModelLoader, model_class, options))


def load_rank(
    folder, rank, num_ranks, model_class=None, loader_class=DwdpModelLoader, **options
) -> RankLoad:
    with as_rank(rank, num_ranks, None):
        model = _load(folder, loader_class, model_class, options)
        registry = active_registry()
        local = {layer.layer_name: layer.local_experts for layer in registry.layers}
        return RankLoad(_experts(model), local, registry.read_count)


def _load(folder, loader_class, model_class, options):
    """Memory that the loader leaves alone is NaN."""
    arguments = {"max_model_len": 256, "enforce_eager": True, "skip_tokenizer_init": True}
    config = EngineArgs(model=str(folder), **arguments, **options).create_engine_config()
    with set_current_vllm_config(config), set_default_torch_dtype(torch.bfloat16):
        model = initialize_model(vllm_config=config, model_class=model_class)
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan)
        loader_class(config.load_config).load_weights(model, config.model_config)
    return model


def _experts(model):
    layers = [m for m in model.modules() if isinstance(m, RoutedExperts)]
    return {
        layer.layer_name: {
            name: parameter.data
            for name, parameter in layer.named_parameters(recurse=False)
            if name.startswith(("w13_", "w2_"))
        }
        for layer in layers
    }
