# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Bound expert weights refuse every write, and workers every call of vLLM that would write."""

from types import SimpleNamespace

import pytest
import torch
from layer_group import HIDDEN, Group, Model, make_checkpoint

from vllm_dwdp.engine.moe.read_only import ReadOnlyWeight
from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts
from vllm_dwdp.engine.worker.base import SAVING_RPCS, WRITING_RPCS
from vllm_dwdp.engine.worker.cpu import DwdpCPUWorker

WRITES = {
    "in place": lambda p: p.zero_(),
    "through data": lambda p: p.data.copy_(torch.zeros_like(p)),
    "through detach": lambda p: p.detach().mul_(2),
    "one element": lambda p: p.__setitem__((0, 0, 0), 1.0),
    "an expert": lambda p: p.data[1].narrow(0, 0, 2).fill_(1.0),
    "as other type": lambda p: p.data.view(torch.uint8).zero_(),
    "operator": lambda p: torch.ops.aten.zero_(p),
    "output of an operator": lambda p: torch.add(p.clone(), 1, out=p.data),
    "initialisation": torch.nn.init.zeros_,
    "numpy": lambda p: p.view(torch.uint8).numpy(),
    "pointer": lambda p: p.data_ptr(),
}
REPLACEMENTS = {
    "data": lambda layer: setattr(layer.w13_weight, "data", torch.zeros(3)),
    "attribute": lambda layer: setattr(layer, "w13_weight", parameter_of_zeros()),
    "nothing": lambda layer: setattr(layer, "w13_weight", None),
    "state dict": lambda layer: layer.load_state_dict(
        {name: torch.zeros_like(p) for name, p in layer.named_parameters()}, assign=True
    ),
}


def parameter_of_zeros():
    return torch.nn.Parameter(torch.zeros(3), requires_grad=False)


@pytest.mark.parametrize("name", WRITING_RPCS)
def test_worker_refuses_calls_that_write(name):
    with pytest.raises(ReadOnlyWeight, match=f"'{name}' would write to expert weights"):
        getattr(DwdpCPUWorker, name)(SimpleNamespace())


@pytest.mark.parametrize("name", SAVING_RPCS)
def test_worker_refuses_calls_that_save_what_is_shared(name):
    with pytest.raises(ReadOnlyWeight, match=f"'{name}' needs .*copy the checkpoint"):
        getattr(DwdpCPUWorker, name)(SimpleNamespace())


def test_worker_loads_once():
    worker = SimpleNamespace(_sharing=object())
    with pytest.raises(ReadOnlyWeight, match="'load_model' would write to expert weights"):
        DwdpCPUWorker.load_model.__wrapped__(worker)


def test_bound_layer_refuses_to_load():
    layer = SimpleNamespace(is_bound=True, layer_name="layers.0.experts")
    weight = torch.zeros(4)
    with pytest.raises(ReadOnlyWeight, match=r"layers\.0\.experts: .*read-only"):
        DwdpRoutedExperts.weight_loader(layer, weight, weight, "w1", "w1", 0)


@pytest.mark.usefixtures("one_process_group")
def test_bound_weights_refuse_every_write():
    checkpoint = make_checkpoint(7, torch.bfloat16, has_bias=True)
    group = Group(2, None, checkpoint, lambda: Model(7, torch.bfloat16, has_bias=True))
    model = group.bind(0)
    x, logits = torch.ones(3, HIDDEN).bfloat16(), torch.randn(3, 7).bfloat16()
    before = model.run(x, logits)
    weight = model.experts[0].w13_weight
    copy = weight.clone()
    for way, write in WRITES.items():
        with pytest.raises(ReadOnlyWeight, match="asked for writable expert weights"):
            write(weight)
            pytest.fail(f"written: {way}")
    for parameter in model.experts[1].parameters():
        with pytest.raises(ReadOnlyWeight):
            parameter.data.zero_()
    for way, replace in REPLACEMENTS.items():
        with pytest.raises(RuntimeError, match="would be replaced"):  # PyTorch wraps some
            replace(model.experts[0])
            pytest.fail(f"replaced: {way}")
    assert torch.equal(weight, copy)
    for output, expected in zip(model.run(x, logits), before, strict=True):
        assert torch.equal(output, expected)
