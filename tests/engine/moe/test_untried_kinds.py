# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Small layers tell which tensors have rows of experts, where no test has tried a kind of layer.

That they tell what sizes tell, for every kind that was tried, is shown by
tests/contract/test_formats.py.
"""

import copy

import pytest
import torch
from layer_group import HIDDEN, INTERMEDIATE, TOP_K, Group, Model, as_rank, make_checkpoint
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.fused_moe import FusedMoEFactory
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.worker import workspace

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.moe.layer_plan import LayerPlan

pytestmark = pytest.mark.usefixtures("one_process_group")
SHAPE = NUM_EXPERTS, DTYPE, HAS_BIAS = 12, torch.bfloat16, False
NUM_LOCAL = 6
UNCLEAR = (
    r"layers\.0\.experts: dwdp can't tell whether 'scales' of PaddedMethod with the kernel "
    r"\w+ has a row for each expert: it is"
)
NOT_BUILT = r"layers\.0\.experts: dwdp's tests have not tried FewMethod with the kernel \w+, .*"


class TableMethod(UnquantizedFusedMoEMethod):
    """A method whose layers all have one table, with as many rows as a rank has experts."""

    def process_weights_after_loading(self, layer):
        super().process_weights_after_loading(layer)
        layer.table = torch.arange(NUM_LOCAL * 4).view(NUM_LOCAL, 4)


class PaddedMethod(UnquantizedFusedMoEMethod):
    """A method that pads experts, which dwdp can't share."""

    def process_weights_after_loading(self, layer):
        super().process_weights_after_loading(layer)
        layer.scales = torch.ones(-(-layer.local_num_experts // 4) * 4)


class InnerMethod(UnquantizedFusedMoEMethod):
    """A method that has experts on an inner axis."""

    def process_weights_after_loading(self, layer):
        super().process_weights_after_loading(layer)
        layer.scales = torch.ones(5, layer.local_num_experts)


class FewMethod(UnquantizedFusedMoEMethod):
    """A method that works with the experts of the model alone."""

    def process_weights_after_loading(self, layer):
        if layer.local_num_experts < NUM_LOCAL:
            raise ValueError(f"{layer.local_num_experts} experts are too few")
        super().process_weights_after_loading(layer)


class Config(QuantizationConfig):
    """A quantisation config that gives each layer a method of a class."""

    def __init__(self, method):
        super().__init__()
        self._method = method

    @classmethod
    def get_name(cls):
        return "untried"

    @classmethod
    def get_supported_act_dtypes(cls):
        return [DTYPE]

    @classmethod
    def get_min_capability(cls):
        return 0

    @staticmethod
    def get_config_filenames():
        return []

    @classmethod
    def from_config(cls, config):
        raise NotImplementedError

    def get_quant_method(self, layer, prefix):
        return self._method(layer.moe_config)


class UntriedModel(Model):
    """Layers with a method that dwdp's tests have not tried."""

    def __init__(self, method):
        super().__init__(*SHAPE, num_layers=0)
        with set_current_vllm_config(self.config):
            self.layers = [
                FusedMoEFactory(
                    num_experts=NUM_EXPERTS,
                    top_k=TOP_K,
                    hidden_size=HIDDEN,
                    intermediate_size=INTERMEDIATE,
                    params_dtype=DTYPE,
                    prefix=f"layers.{i}.experts",
                    quant_config=Config(method),
                )
                for i in range(2)
            ]
        self.experts = [layer.routed_experts for layer in self.layers]


def loaded(method):
    """The model of rank 0, loaded and processed, and its context."""
    with as_rank(0, 2, None) as context:
        return UntriedModel(method).load(make_checkpoint(*SHAPE)), context


def test_tensor_of_as_many_rows_as_experts_is_no_tensor_of_experts():
    model, _ = loaded(TableMethod)
    layer = model.experts[0]
    assert {rows.name for rows in layer.expert_rows()} == {"w13_weight", "w2_weight"}
    assert set(layer.replicated_tensors()) == {"table"}


def test_layer_with_such_a_tensor_gives_the_outputs_of_the_whole_layer():
    checkpoint = make_checkpoint(*SHAPE)
    group = Group(2, None, checkpoint, lambda: UntriedModel(TableMethod))
    x, logits = torch.randn(5, HIDDEN).to(DTYPE), torch.randn(5, NUM_EXPERTS).to(DTYPE)
    expected = Model(*SHAPE).load(checkpoint).run(x, logits)
    model = group.bind(0)
    assert all(map(torch.equal, model.run(x, logits), expected))
    for layer in model.experts:
        assert torch.equal(layer.table, torch.arange(NUM_LOCAL * 4).view(NUM_LOCAL, 4))


def test_layers_of_one_kind_are_tried_once(monkeypatch):
    built = []
    build = LayerPlan.small_layer

    def note(plan, stock, num_local, biases):
        built.append((plan.layer_name, num_local))
        return build(plan, stock, num_local, biases)

    monkeypatch.setattr(LayerPlan, "small_layer", note)
    model, _ = loaded(TableMethod)
    assert not built, "before it is processed, a layer goes by sizes"
    for layer in model.experts:
        layer.expert_rows()
    assert built == [("layers.0.experts", 2), ("layers.0.experts", 3)]


def test_kind_that_was_tried_needs_no_small_layer(monkeypatch):
    monkeypatch.setattr(LayerPlan, "small_layer", None)
    with as_rank(0, 2, None):
        model = Model(*SHAPE).load(make_checkpoint(*SHAPE))
    assert {rows.name for rows in model.experts[0].expert_rows()} == {"w13_weight", "w2_weight"}


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (PaddedMethod, rf"{UNCLEAR} \[8\] of \S+ with 6 experts here, and is \[4\] of \S+ with 2"),
        (InnerMethod, r"the rows of 6 experts in 'scales' one after the other in memory"),
        (FewMethod, rf"{NOT_BUILT} failed with ValueError: 2 experts are too few; choose another"),
    ],
)
def test_unclear_layer_is_refused_by_name(method, sentence):
    model, _ = loaded(method)
    with pytest.raises(ConfigError, match=sentence):
        model.experts[0].expert_rows()


def test_tensor_that_small_layers_lack_is_refused():
    model, _ = loaded(TableMethod)
    model.experts[0].other = torch.ones(7)
    with pytest.raises(ConfigError, match=r"'other' of TableMethod .* missing in a small layer"):
        model.experts[0].expert_rows()


def test_small_layers_leave_no_trace(monkeypatch):
    class Tracing(TableMethod):
        """A method that draws random numbers, and takes a workspace of vLLM's for each count."""

        def process_weights_after_loading(self, layer):
            super().process_weights_after_loading(layer)
            layer.noise = torch.rand(4)
            workspaces = workspace.current_workspace_manager()
            workspaces.get_persistent(layer.local_num_experts, (1,), torch.int32)

    monkeypatch.setattr(workspace, "_manager", workspace.WorkspaceManager(torch.device("cpu")))
    with set_default_torch_dtype(DTYPE):
        model, context = loaded(Tracing)
    compilation = model.config.compilation_config
    before = state_of(context, compilation)
    model.experts[0].expert_rows()
    assert torch.equal(torch.get_rng_state(), before.pop("random"))
    after = state_of(context, compilation)
    after.pop("random")
    assert after == before


def state_of(context, compilation):
    return {
        "random": torch.get_rng_state(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "layers": list(map(id, context.layers)),
        "names": dict(compilation.static_forward_context),
        "operators": copy.copy(compilation.enabled_custom_ops),
        "not used": copy.copy(compilation.disabled_custom_ops),
        "workspaces": [set(keys) for keys in workspace._manager._persistent_resources],
    }
