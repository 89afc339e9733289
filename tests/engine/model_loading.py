# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Builds models and loads them with vLLM's loaders, in this process; they never run."""

import re
from typing import NamedTuple

import torch
from layer_group import as_rank
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from vllm_dwdp.engine.moe.loader import DwdpModelLoader
from vllm_dwdp.engine.moe.read_count import ReadCount
from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts

OF_EXPERTS = re.compile(r"experts?\.|moe\.(in|out)put_linear")
NUMBERED = re.compile(r"\.experts\.(\d+)\.")


class RankLoad(NamedTuple):
    """What a rank has loaded, and what it read: by its own count, and as PyTorch saw it."""

    experts: dict[str, dict[str, torch.Tensor]]
    """By layer and name, the rank's share [local experts, ...] of the expert tensors."""
    local_experts: dict[str, range]
    read_count: ReadCount
    num_touched_bytes: int
    """Bytes of the checkpoint's expert tensors that PyTorch's operators read."""
    opened: set[int]
    """Numbers of experts in the names of tensors that the loader handed to the model."""
    names: list[str]
    """Names of all tensors that the loader handed to the model."""
    steps: list[str]
    """The steps of progress that the loader reported."""
    layers: list[DwdpRoutedExperts]

    @property
    def num_expert_bytes(self):
        return sum(t.nbytes for layer in self.experts.values() for t in layer.values())


def load_stock(folder, model_class=None, **options):
    """Expert tensors [experts, ...] by layer and name, as stock vLLM loads them."""
    return _experts(_load(folder, DefaultModelLoader, model_class, options))


def load_rank(
    folder, rank, num_ranks, model_class=None, before_loading=lambda model: None, **options
) -> RankLoad:
    steps = []
    callbacks = {"on_step": steps.append, "before_loading": before_loading}
    rank_context = as_rank(rank, num_ranks, None, **callbacks)
    with rank_context as context, FileReads() as reads:
        loader = type("Watched", (_Watched,), {"reads": reads, "names": []})
        model = _load(folder, loader, model_class, options)
    return RankLoad(
        _experts(model),
        {layer.layer_name: layer.local_experts for layer in context.layers},
        context.read_count,
        reads.num_bytes,
        {int(number) for name in loader.names for number in NUMBERED.findall(name)},
        loader.names,
        steps,
        context.layers,
    )


def load_draft(folder, rank, num_ranks):
    """Expert tensors by layer and name, as a rank loads them that has loaded the model before."""
    with as_rank(rank, num_ranks, None):
        _load(folder, DwdpModelLoader, None, {})
        return _experts(_load(folder, DwdpModelLoader, None, {}))


class FileReads(TorchDispatchMode):
    """Counts the bytes of watched tensors that PyTorch's operators read; views read nothing."""

    def __init__(self):
        super().__init__()
        self.watched = []
        self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.watched and not func.is_view:
            is_part = func.overloadpacket is torch.ops.aten.index
            read = [t for t in args if isinstance(t, torch.Tensor) and self._is_watched(t)]
            self.num_bytes += sum((result if is_part else tensor).nbytes for tensor in read)
        return result

    def _is_watched(self, tensor):
        starts = ((t.data_ptr(), t.nbytes) for t in self.watched)
        return any(start <= tensor.data_ptr() < start + size for start, size in starts)


class _Watched(DwdpModelLoader):
    reads: FileReads
    names: list[str]

    def get_all_weights(self, model_config, model):
        for name, tensor in super().get_all_weights(model_config, model):
            self.names.append(name)
            if OF_EXPERTS.search(name) and "shared" not in name:
                self.reads.watched.append(tensor)
            yield name, tensor


def _load(folder, loader_class, model_class, options):
    """Load a checkpoint into a model full of NaN; values that the loader doesn't write stay NaN."""
    arguments = {"max_model_len": 256, "enforce_eager": True, "skip_tokenizer_init": True}
    config = EngineArgs(model=str(folder), **arguments, **options).create_engine_config()
    with set_current_vllm_config(config), set_default_torch_dtype(torch.bfloat16):
        model = initialize_model(vllm_config=config, model_class=model_class)
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan if parameter.is_floating_point() else -1)
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
