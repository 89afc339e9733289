# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Readers run a layer on views or slots; what vLLM later sets on it must reach all of them.

A start ends if something can't reach a reader.
"""

import functools
from types import SimpleNamespace

import pytest
import torch
from layer_group import Group, Model, make_checkpoint

from vllm_dwdp.config import ConfigError, FetchMode
from vllm_dwdp.engine.moe.kernel.reader_state import differences

pytestmark = pytest.mark.usefixtures("one_process_group")
NUM_EXPERTS = 6


def hook(*args):
    """A hook that vLLM could set on a kernel."""


@pytest.fixture
def layer():
    """Layer 0 on rank 0 of two, with a reader on views and a reader on slots."""
    shape = NUM_EXPERTS, torch.bfloat16, False
    group = Group(2, None, make_checkpoint(*shape), lambda: Model(*shape))
    layer = group.bind(0).experts[0]
    layer.group = group
    return layer


def kernel(layer):
    return layer.quant_method.moe_kernel.fused_experts


def test_readers_are_set_up_alike_when_they_are_made(layer):
    layer.settle_readers()


@pytest.mark.parametrize(
    ("place", "path"),
    [
        (kernel, "moe_kernel.fused_experts.post_gemm2_hook"),
        (lambda layer: layer.quant_method.moe_kernel.impl, "moe_kernel.impl.post_gemm2_hook"),
        (lambda layer: layer.quant_method, "post_gemm2_hook"),
    ],
    ids=["experts", "kernel", "method"],
)
def test_hook_that_reaches_one_kernel_alone_ends_the_start_by_name(layer, place, path):
    place(layer).post_gemm2_hook = hook
    with pytest.raises(ConfigError, match=r"layers.0.experts: .*'prefetch'") as refusal:
        layer.settle_readers()
    assert f"differences in {path};" in str(refusal.value)
    assert "set dwdp.fetch to 'direct'" in str(refusal.value)


def test_state_of_a_kernel_that_changed_is_named(layer):
    kernel(layer)._use_zentorch = not kernel(layer)._use_zentorch
    with pytest.raises(ConfigError, match=r"moe_kernel\.fused_experts\._use_zentorch"):
        layer.settle_readers()


def test_hook_on_all_kernels_is_no_difference(layer):
    for reader in {layer, *layer._readers.values()}:
        kernel(reader).post_gemm2_hook = functools.partial(hook, reader)
    layer.settle_readers()


def test_reader_in_place_alone_runs_the_layers_own_kernel(layer):
    layer._readers = {FetchMode.DIRECT: layer._readers[FetchMode.DIRECT]}
    kernel(layer).post_gemm2_hook = hook
    layer.settle_readers()


def test_attributes_that_vllm_sets_on_the_layer_reach_all_readers(layer):
    layer.routing_sink = sink = object()
    assert all(reader.routing_sink is None for reader in layer._readers.values())
    weights = {mode: reader.w13_weight.data_ptr() for mode, reader in layer._readers.items()}
    layer.settle_readers()
    for mode, reader in layer._readers.items():
        assert reader.routing_sink is sink
        assert reader.w13_weight.data_ptr() == weights[mode]
    assert len(set(weights.values())) == 2, "in place and on a slot"
    layer.routing_sink = None


def test_functions_made_for_each_kernel_are_alike_and_others_are_not():
    class Method:
        def __init__(self, function):
            self.function = function

    def make(value):
        return Method(lambda: value)

    assert differences(make(1), make(2)) == []
    assert differences(make(1), Method(lambda: None)) == ["function"]
    assert differences(make(1), Method(None)) == ["function"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([hook], [hook, hook]),
        ({"gemm2": hook}, {"gemm1": hook}),
        ({"gemm2": [hook]}, {"gemm2": [print]}),
        ({1, 2}, {1, 3}),
        (torch.bfloat16, torch.float16),
        (functools.partial(hook, 1), functools.partial(hook, 2)),
    ],
)
def test_what_containers_hold_is_compared(one, other):
    assert differences(SimpleNamespace(state=one), SimpleNamespace(state=other)) == ["state"]
    assert differences(SimpleNamespace(state=one), SimpleNamespace(state=one)) == []
