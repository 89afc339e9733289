# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Builds and loads MoE layers: one with all experts, and those of the ranks of a dwdp group."""

import os
from collections.abc import Callable
from typing import Any

import torch
from cases import Case, model_config
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.fused_moe import FusedMoEFactory
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.models.gpt_oss import GptOssRoutedExperts
from vllm.platforms import current_platform

from vllm_dwdp.engine.moe.context import MoeContext
from vllm_dwdp.engine.moe.gpt_oss_layer import GptOssLayer
from vllm_dwdp.engine.moe.input_scales import is_input_scale
from vllm_dwdp.engine.moe.layer_classes import new_layer

NUM_RANKS = 2
NUM_EXPERTS = int(os.environ.get("NUM_EXPERTS", 7))
"""The ranks have 4 and 3 experts. With 2, they have one each."""

Plant = Callable[[Any], None]
"""Changes a rank's processed layer, see plants.py."""


def build(case: Case, index: int) -> Any:
    config = VllmConfig()
    if case.needs_model:
        object.__setattr__(config, "model_config", model_config(case.dtype))
    with set_current_vllm_config(config), torch.device(current_platform.device_type):
        runner = FusedMoEFactory(
            num_experts=NUM_EXPERTS,
            top_k=2,
            hidden_size=case.hidden,
            intermediate_size=case.intermediate,
            params_dtype=case.dtype,
            has_bias=case.has_bias,
            prefix=f"model.layers.{index}.mlp.experts",
            quant_config=case.config(),
            activation=case.activation,
            **case.options,
        )
    layer = runner.routed_experts
    layer.probe_config = config
    for name, parameter in list(layer._parameters.items()):
        if parameter is not None and parameter.is_meta:
            made = torch.empty(
                parameter.shape, dtype=parameter.dtype, device=current_platform.device_type
            )
            layer._parameters[name] = torch.nn.Parameter(made, requires_grad=False)
    if case.has_bias:
        layer._loaded_expert_biases |= {"w13_bias", "w2_bias"}
    return layer


def make_checkpoint(layer: Any) -> dict[str, torch.Tensor]:
    """Random tensors for a whole layer; the scales of its experts differ by up to 2 ** 7."""
    torch.manual_seed(0)
    spread = torch.tensor([2.0 ** -((5 * expert + 3) % 8) for expert in range(NUM_EXPERTS)])
    made = {}
    for name, parameter in layer.named_parameters():
        like = parameter.data
        if isinstance(layer, GptOssRoutedExperts):  # parameters are padded, checkpoints aren't
            like = like.new_empty(gpt_oss_shape(layer.moe_config, name))
        tensor = _random(name, like)
        is_scale = "scale" in name and tensor.numel() and tensor.dtype.is_floating_point
        if is_scale and tensor.dim() and tensor.shape[0] == NUM_EXPERTS:
            factors = spread.view(-1, *[1] * (tensor.dim() - 1))
            tensor = (tensor.float() * factors).to(tensor.dtype)
        made[name] = tensor
    return made


def gpt_oss_shape(moe_config: Any, name: str) -> tuple[int, ...]:
    """The shape of a tensor in MXFP4 checkpoints of gpt-oss, with the blocks of a row joined."""
    hidden = moe_config.hidden_dim_unpadded
    intermediate = moe_config.intermediate_size_per_partition_unpadded
    is_first = name.startswith("w13")
    outputs, inputs = (2 * intermediate, hidden) if is_first else (hidden, intermediate)
    in_row = {"_bias": (), "_weight_scale": (inputs // 32,), "_weight": (inputs // 2,)}
    kind = name.removeprefix("w13").removeprefix("w2")
    return (NUM_EXPERTS, outputs, *in_row[kind])


def _random(name: str, like: torch.Tensor) -> torch.Tensor:
    if "g_idx" in name and like.numel():
        return (torch.arange(like.shape[-1], dtype=torch.int32) // 128).expand(like.shape).clone()
    if "shape" in name:
        return torch.ones_like(like)
    if like.dtype.is_floating_point:
        is_weight = "weight" in name and "scale" not in name
        if is_weight:
            size = 1 if like.dtype == torch.float8_e4m3fn else 1 / 8
            return (torch.randn(like.shape) * size).to(like.dtype)
        return (torch.rand(like.shape) + 0.5).to(like.dtype)
    if not like.numel():
        return like.clone()
    size = like.element_size()
    random = torch.randint(0, 100, (*like.shape, size), dtype=torch.uint8)
    return random.view(like.dtype).reshape(like.shape)


def load(layer: Any, checkpoint: dict[str, torch.Tensor], first: int = 0) -> None:
    """Load a layer's rows. Activation scales go through vLLM's own loader, expert by expert.

    So does all that gpt-oss's own class of layers loads in dwdp.
    """
    for name, parameter in layer.named_parameters():
        whole = checkpoint[name]
        if isinstance(layer, GptOssLayer):
            load_numbered(layer, name, parameter, whole)
        elif isinstance(layer, GptOssRoutedExperts):
            layer.weight_loader(parameter, whole, name, shard_id=None, expert_id=None)
        elif is_input_scale(name):
            load_input_scales(layer, name, parameter, whole)
        elif whole.shape == parameter.shape:
            parameter.data.copy_(whole)
        else:
            parameter.data.copy_(whole[first : first + parameter.shape[0]])


def load_numbered(
    layer: Any, name: str, parameter: torch.nn.Parameter, whole: torch.Tensor
) -> None:
    shard = "gpt_oss_w13" if name.startswith("w13") else "gpt_oss_w2"
    if name.endswith("_weight"):
        whole = whole.unflatten(-1, (-1, 16))  # blocks, as checkpoints have them
    for numbered_name, row in layer.parts(f"0.mlp.experts.{name}", whole):
        expert = int(numbered_name.split(".")[3])
        layer.weight_loader(parameter, row, numbered_name, shard, expert)


def load_input_scales(
    layer: Any, name: str, parameter: torch.nn.Parameter, whole: torch.Tensor
) -> None:
    for expert in range(NUM_EXPERTS):
        for shard in ("w1", "w3") if name.startswith("w13") else ("w2",):
            # compressed-tensors has one scale for both
            has_two = whole.dim() == 2 and "ompressed" not in type(layer.quant_method).__name__
            scale = whole[expert].flatten()[-1 if has_two and shard == "w3" else 0]
            layer.weight_loader(parameter, scale, f"experts.{expert}.{name}", shard, expert)


def process(layer: Any) -> None:
    with set_current_vllm_config(layer.probe_config):
        layer.quant_method.process_weights_after_loading(layer)


def rank_layers(
    case: Case, index: int, checkpoint: dict[str, torch.Tensor], plant: Plant
) -> list[Any]:
    layers = []
    for rank in range(NUM_RANKS):
        MoeContext(rank=rank, dwdp_size=NUM_RANKS, num_experts_per_worker=None).enter()
        stock, RoutedExperts.__new__ = RoutedExperts.__new__, staticmethod(new_layer)
        try:
            layer = build(case, index + rank)
        finally:
            RoutedExperts.__new__ = stock
        load(layer, checkpoint, layer.local_experts.start)
        layer.input_scales.complete(layer._parameters)
        process(layer)
        plant(layer)
        layers.append(layer)
    return layers
