# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which classes of MoE layers dwdp can share, and as what class it builds them."""

import pytest
from torch.nn import Module
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.models.dbrx import DbrxExperts
from vllm.model_executor.models.gpt_oss import GptOssRoutedExperts
from vllm.model_executor.models.transformers.moe import TransformersRoutedExperts

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.moe import layer_classes
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


@pytest.mark.parametrize("stock", [GptOssRoutedExperts, DbrxExperts])
def test_layer_that_loads_in_a_way_of_its_own_stays_stock_and_is_refused(stock):
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
