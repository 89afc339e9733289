# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Has vLLM build its MoE layers as dwdp's, those of a model's own class too.

vLLM's registry replaces a layer by the name of its class, by one class whatever the layer derives
from. So dwdp makes a class for each: dwdp's layer first, then the model's own.
"""

import functools
from typing import Any

from torch.nn import Module
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

from vllm_dwdp.engine.moe.context import context
from vllm_dwdp.engine.moe.gpt_oss_layer import OWN_WAYS_OF_GPT_OSS, GptOssLayer
from vllm_dwdp.engine.moe.kernel.recipe import note_arguments
from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts

HARMLESS = {"get_expert_mapping"}
"""Methods that a model's own class may override: this one tells tensors of a checkpoint by name."""

GPT_OSS = "GptOssRoutedExperts"
"""vLLM's class of gpt-oss's layers. By its name, dwdp needs no import of that model for others."""


def share_layers() -> None:
    """From now on each MoE layer that vLLM builds in this process is dwdp's, if it can be.

    A draft model's aren't: vLLM builds it when the model has been loaded, see loader.py.
    """
    note_arguments()
    RoutedExperts.__new__ = staticmethod(new_layer)


@functools.cache
def shared_class(stock: type[RoutedExperts]) -> type[RoutedExperts]:
    """dwdp's class for layers of the class `stock`; `stock` itself if dwdp can't share them."""
    if issubclass(stock, DwdpRoutedExperts) or own_ways(stock):
        return stock
    if stock is RoutedExperts:
        return DwdpRoutedExperts
    base = GptOssLayer if stock.__name__ == GPT_OSS else DwdpRoutedExperts
    # A quantisation finds its layers by words in the names of their classes.
    return type(f"Dwdp{stock.__name__}", (base, stock), {})


def own_ways(stock: type[RoutedExperts]) -> list[str]:
    """What a class of MoE layers does in a way of its own, by name, so that dwdp can't share it."""
    own = stock.__mro__[: stock.__mro__.index(RoutedExperts)]
    found = {name for one in own for name in vars(one)} - HARMLESS
    found -= OWN_WAYS_OF_GPT_OSS if stock.__name__ == GPT_OSS else set()
    return sorted(name for name in found if name == "__init__" or not name.startswith("__"))


def new_layer(stock: type[RoutedExperts], *args: Any, **kwargs: Any) -> Any:
    """A layer that isn't initialised yet; takes the place of PluggableLayer.__new__."""
    kind = op_registry_oot.get(stock.__name__, stock)
    shared = shared_class(kind)
    is_drafts = shared is not kind and context().is_complete
    return Module.__new__(kind if is_drafts else shared)
