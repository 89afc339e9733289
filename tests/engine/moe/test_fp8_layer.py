# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A group shares FP8 layers: experts and scales are adopted and bound, and kernels rebuilt.

The layers are vLLM's own, built with a kernel for GPUs. They never run, since this is a CPU.
"""

import itertools

import pytest
import torch
from layer_group import Group
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.fused_moe import FusedMoEFactory
from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend, backend_to_kernel_cls
from vllm.model_executor.layers.quantization import fp8
from vllm.model_executor.layers.quantization.utils import fp8_utils

from vllm_dwdp.config import FetchMode
from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts

pytestmark = pytest.mark.usefixtures("one_process_group", "a_gpus_kernel")

NUM_EXPERTS, HIDDEN, INTERMEDIATE, BLOCK = 7, 256, 128, 128
SHARDS = {"w13_weight": ("w1", "w3"), "w2_weight": ("w2",)}
SHAPES = {"w1": (INTERMEDIATE, HIDDEN), "w3": (INTERMEDIATE, HIDDEN), "w2": (HIDDEN, INTERMEDIATE)}


@pytest.fixture
def a_gpus_kernel(monkeypatch):
    (kernel,) = backend_to_kernel_cls(Fp8MoeBackend.TRITON)
    choice = (Fp8MoeBackend.TRITON, kernel)
    monkeypatch.setattr(fp8, "select_fp8_moe_backend", lambda **_: choice)


class Fp8Model:
    """Two MoE layers; a weight has a scale for each 128 x 128 block, or, if 'static', one scale."""

    def __init__(self, scheme="dynamic"):
        block = [BLOCK, BLOCK] if scheme == "dynamic" else None
        config = fp8.Fp8Config(
            is_checkpoint_fp8_serialized=True, activation_scheme=scheme, weight_block_size=block
        )
        with set_current_vllm_config(VllmConfig()):
            self.layers = [
                FusedMoEFactory(
                    num_experts=NUM_EXPERTS,
                    top_k=2,
                    hidden_size=HIDDEN,
                    intermediate_size=INTERMEDIATE,
                    params_dtype=torch.bfloat16,
                    prefix=f"layers.{i}.experts",
                    quant_config=config,
                )
                for i in range(2)
            ]
        self.experts = [layer.routed_experts for layer in self.layers]

    def load(self, checkpoint):
        for experts, tensors in zip(self.experts, checkpoint, strict=True):
            for (name, shard, expert), tensor in tensors.items():
                parameter = getattr(experts, name)
                experts.weight_loader(parameter, tensor, f"{shard}.{name}", shard, expert)
            if isinstance(experts, DwdpRoutedExperts):
                experts.complete_loading()
            experts.quant_method.process_weights_after_loading(experts)
        return self


def make_checkpoint():
    """For each layer a dictionary (parameter, shard, expert) -> weights, or their block scales."""
    torch.manual_seed(0)
    found = []
    for _ in range(2):
        tensors = {}
        for name, shards in SHARDS.items():
            for shard in shards:
                for expert in range(NUM_EXPERTS):
                    rows, columns = SHAPES[shard]
                    weight = torch.randn(rows, columns).to(torch.float8_e4m3fn)
                    scale = torch.rand(rows // BLOCK, columns // BLOCK)
                    tensors[name, shard, expert] = weight
                    tensors[f"{name}_scale_inv", shard, expert] = scale
        found.append(tensors)
    return found


@pytest.mark.parametrize("dwdp_size", [1, 2, 3])
def test_bound_layers_show_the_unsharded_weights_and_scales(dwdp_size):
    checkpoint = make_checkpoint()
    stock = Fp8Model().load(checkpoint)
    group = Group(dwdp_size, None, checkpoint, Fp8Model)
    for rank in range(dwdp_size):
        model = group.bind(rank, FetchMode.DIRECT)
        for experts, expected in zip(model.experts, stock.experts, strict=True):
            names = [name for name, _ in expected.named_parameters()]
            assert sorted(names) == sorted(rows.name for rows in experts.rows)
            for name in names:
                shown = getattr(experts, name).detach().clone().view(torch.uint8)
                assert torch.equal(shown, getattr(expected, name).view(torch.uint8)), name
            assert experts.num_experts == experts.local_num_experts == NUM_EXPERTS
            kernel = experts.quant_method.moe_kernel.fused_experts
            of_stock = expected.quant_method.moe_kernel.fused_experts
            assert torch.equal(kernel.w1_scale.detach(), of_stock.w1_scale)
            assert torch.equal(kernel.w2_scale.detach(), of_stock.w2_scale)


def make_static_checkpoint():
    """As make_checkpoint, with one scale for each weight, and a scale for its activations."""
    torch.manual_seed(0)
    found = []
    for _ in range(2):
        tensors = {}
        for name, shards in SHARDS.items():
            for key in itertools.product(shards, range(NUM_EXPERTS)):
                tensors[name, *key] = torch.randn(SHAPES[key[0]]).to(torch.float8_e4m3fn)
                tensors[f"{name}_scale", *key] = torch.rand(())
                tensors[name.replace("weight", "input_scale"), *key] = torch.rand(())
        found.append(tensors)
    return found


@pytest.fixture
def a_gpus_quantisation(monkeypatch):
    """Replaces the operator by which vLLM gives w1 and w3 one scale; CPU builds lack it."""

    def quantise(weight, scale):
        limits = torch.finfo(torch.float8_e4m3fn)
        return (weight / scale).clamp(limits.min, limits.max).to(torch.float8_e4m3fn), scale

    monkeypatch.setattr(fp8_utils.ops, "scaled_fp8_quant", quantise)


@pytest.mark.usefixtures("a_gpus_quantisation")
@pytest.mark.parametrize("dwdp_size", [1, 2, 3])
def test_static_activation_scales_are_those_of_all_experts(dwdp_size):
    """Stock vLLM takes the largest scale of all experts, but a rank only has its own experts."""
    checkpoint = make_static_checkpoint()
    stock = Fp8Model("static").load(checkpoint)
    group = Group(dwdp_size, None, checkpoint, lambda: Fp8Model("static"))
    for rank in range(dwdp_size):
        bound = group.bind(rank, FetchMode.DIRECT)
        for experts, expected in zip(bound.experts, stock.experts, strict=True):
            for name, scale in expected.named_parameters():
                assert torch.equal(getattr(experts, name).detach().clone(), scale), name
            kernel = experts.quant_method.moe_kernel.fused_experts
            of_stock = expected.quant_method.moe_kernel.fused_experts
            assert torch.equal(kernel.a1_scale, of_stock.a1_scale)
            assert torch.equal(kernel.a2_scale, of_stock.a2_scale)


@pytest.mark.usefixtures("a_gpus_quantisation")
def test_one_activation_scale_for_all_experts_counts_as_in_stock_vllm():
    """Llama 4's checkpoints have one, which vLLM loads to expert 0; others keep their start."""
    checkpoint = make_static_checkpoint()
    for tensors in checkpoint:
        for key in [key for key in tensors if "input_scale" in key[0] and key[2] > 0]:
            del tensors[key]
        tensors["w2_input_scale", "w2", 0] = torch.tensor(3.0)  # the start is 1
    stock = Fp8Model("static").load(checkpoint)
    group = Group(2, None, checkpoint, lambda: Fp8Model("static"))
    for rank in range(2):
        experts = group.bind(rank, FetchMode.DIRECT).experts[0]
        for name in ("w13_input_scale", "w2_input_scale"):
            assert torch.equal(getattr(experts, name), getattr(stock.experts[0], name)), name
