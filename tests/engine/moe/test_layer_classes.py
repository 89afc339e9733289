# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which classes of MoE layers dwdp can share, and as what class it builds them."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import Module
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.models.dbrx import DbrxExperts
from vllm.model_executor.models.gpt_oss import (
    GptOssForCausalLM,
    GptOssModel,
    GptOssRoutedExperts,
)
from vllm.model_executor.models.transformers.moe import TransformersRoutedExperts

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.moe import layer_classes
from vllm_dwdp.engine.moe.gpt_oss_layer import OWN_WAYS_OF_GPT_OSS, GptOssLayer
from vllm_dwdp.engine.moe.layer_classes import own_ways, shared_class
from vllm_dwdp.engine.moe.loader import check_layers
from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts


class Renamed(TransformersRoutedExperts):
    """A layer that inherits what another class of layers defines."""


def test_vllms_own_layer_is_dwdps():
    assert shared_class(RoutedExperts) is DwdpRoutedExperts
    assert shared_class(DwdpRoutedExperts) is DwdpRoutedExperts


@pytest.mark.parametrize("stock", [TransformersRoutedExperts, Renamed])
def test_layer_of_a_model_is_both_and_keeps_its_name(stock):
    made = shared_class(stock)
    assert made.__name__ == f"Dwdp{stock.__name__}"
    assert issubclass(made, stock) and issubclass(made, DwdpRoutedExperts)
    assert made.weight_loader is DwdpRoutedExperts.weight_loader
    assert made.get_expert_mapping is TransformersRoutedExperts.get_expert_mapping
    assert shared_class(stock) is shared_class(made) is made


def test_layer_of_gpt_oss_numbers_its_experts():
    made = shared_class(GptOssRoutedExperts)
    assert made.__mro__[1:3] == (GptOssLayer, DwdpRoutedExperts)
    assert issubclass(made, GptOssRoutedExperts)
    assert {
        name for name in vars(GptOssRoutedExperts) if not name.startswith("__")
    } == OWN_WAYS_OF_GPT_OSS


@pytest.mark.parametrize(
    ("in_checkpoint", "parameter", "shard"),
    [
        ("gate_up_proj_blocks", "w13_weight", "gpt_oss_w13"),
        ("gate_up_proj_scales", "w13_weight_scale", "gpt_oss_w13"),
        ("gate_up_proj_bias", "w13_bias", "gpt_oss_w13"),
        ("down_proj_blocks", "w2_weight", "gpt_oss_w2"),
        ("down_proj_scales", "w2_weight_scale", "gpt_oss_w2"),
        ("down_proj_bias", "w2_bias", "gpt_oss_w2"),
        ("gate_up_proj", "w13_weight", "gpt_oss_w13"),
        ("down_proj", "w2_weight", "gpt_oss_w2"),
    ],
)
def test_vllm_finds_the_expert_in_the_name_of_a_row(in_checkpoint, parameter, shard):
    """Through vLLM's own renaming, from the names that gpt-oss's checkpoints have."""
    layer = SimpleNamespace(global_num_experts=3, local_experts=range(1, 3))
    tensor = torch.arange(6).view(3, 2)
    rows = list(GptOssLayer.parts(layer, f"model.layers.7.mlp.experts.{in_checkpoint}", tensor))
    name = f"layers.7.mlp.experts.routed_experts.{parameter}"
    for expert, (row_name, row) in zip(range(1, 3), rows, strict=True):
        ((renamed, _),) = GptOssForCausalLM.hf_to_vllm_mapper.apply([(row_name, row)])
        found = GptOssModel._get_streamed_expert_info(renamed.removeprefix("model."), {name: None})
        assert found == (expert, name, shard)
        assert torch.equal(row, tensor[expert])


def test_quarks_checkpoints_of_gpt_oss_are_refused():
    quark = SimpleNamespace(get_name=lambda: "quark")
    with pytest.raises(
        ConfigError, match="layer 3: dwdp can't load Quark's checkpoints of gpt-oss"
    ):
        GptOssLayer("layer 3", torch.bfloat16, None, quark)


def test_layer_that_loads_in_a_way_of_its_own_stays_stock_and_is_refused():
    stock = DbrxExperts
    assert shared_class(stock) is stock
    assert "weight_loader" in own_ways(stock)
    model = Module()
    model.experts = Module.__new__(stock)
    Module.__init__(model.experts)
    sentence = f"doesn't support the MoE layer {stock.__name__} of 'experts' yet, which .*_loader"
    with pytest.raises(ConfigError, match=sentence):
        check_layers(model)


@pytest.mark.parametrize("name", ["forward_modular", "__init__", "create_weights"])
def test_any_other_method_makes_a_layer_foreign(name):
    stock = type("Odd", (TransformersRoutedExperts,), {name: lambda self: None})
    assert own_ways(stock) == [name]
    assert shared_class(stock) is stock


def test_another_plugins_layer_is_kept(monkeypatch):
    other = type("Other", (RoutedExperts,), {"forward_modular": lambda self: None})
    monkeypatch.setitem(layer_classes.op_registry_oot, "RoutedExperts", other)
    assert type(layer_classes.new_layer(RoutedExperts)) is other
