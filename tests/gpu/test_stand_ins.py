# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The stand-ins for vLLM's operators do what vLLM's callers and Triton kernels expect of them."""

import subprocess
import sys

import pytest
import stand_ins
import torch


def align(ids, num_experts, block_size):
    """Run the stand-in with outputs of the sizes that vLLM gives them, full of garbage before."""
    size = ids.numel() + num_experts * (block_size - 1)
    if ids.numel() < num_experts:
        size = min(ids.numel() * block_size, size)
    tokens = torch.full((size,), -99, dtype=torch.int32)
    experts = torch.full((-(-size // block_size),), -99, dtype=torch.int32)
    padded = torch.full((1,), -99, dtype=torch.int32)
    stand_ins.moe_align_block_size(
        ids, num_experts, block_size, tokens, experts, padded, None, None
    )
    return tokens, experts, int(padded)


@pytest.mark.parametrize("seed", range(20))
def test_every_choice_is_once_in_a_block_of_its_expert(seed):
    generator = torch.Generator().manual_seed(seed)
    num_experts, block_size = [(4, 4), (30, 16), (64, 64), (7, 128)][seed % 4]
    num_tokens, top_k = [(1, 4), (9, 2), (300, 3)][seed % 3]
    low = -1 if seed % 2 else 0  # with padding, or without
    ids = torch.randint(low, num_experts, (num_tokens, top_k), generator=generator)
    tokens, experts, num_padded = align(ids.int(), num_experts, block_size)
    assert num_padded % block_size == 0 and num_padded <= len(tokens) + block_size
    flat, seen = ids.flatten().tolist(), []
    for block in range(num_padded // block_size):
        rows = tokens[block * block_size : (block + 1) * block_size].tolist()
        choices = [row for row in rows if row != len(flat)]
        assert choices, "a block without a choice would be work for nothing"
        assert {flat[choice] for choice in choices} == {int(experts[block])}
        assert choices == sorted(choices)
        seen += choices
    assert sorted(seen) == [choice for choice, expert in enumerate(flat) if expert >= 0]
    assert (tokens[num_padded:] == len(flat)).all()
    assert ((experts >= 0) & (experts < num_experts)).all(), "kernels index weights by them"


def test_example_of_vllms_documentation():
    ids = torch.tensor([[2, 3, 4], [1, 2, 4], [1, 3, 4], [1, 2, 3]], dtype=torch.int32)
    tokens, experts, num_padded = align(ids, 5, 4)
    assert num_padded == 16
    assert tokens[:16].tolist() == [3, 6, 9, 12, 0, 4, 10, 12, 1, 7, 11, 12, 2, 5, 8, 12]
    assert experts[:4].tolist() == [1, 2, 3, 4]


def route(logits, top_k, renormalize, is_padding=None):
    weights = torch.full((len(logits), top_k), torch.nan)
    ids, rows = (torch.full((len(logits), top_k), -99, dtype=torch.int32) for _ in range(2))
    stand_ins.topk_softmax(weights, ids, rows, logits, renormalize, None, is_padding)
    return weights, ids, rows


@pytest.mark.parametrize("renormalize", [True, False])
def test_router_takes_the_most_likely_experts(renormalize):
    logits = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights, ids, rows = route(logits, 4, renormalize)
    likely = logits.float().softmax(-1)
    for token in range(5):
        expected = sorted(range(16), key=lambda expert: -float(likely[token, expert]))[:4]
        assert sorted(ids[token].tolist()) == sorted(expected)
        parts = likely[token, ids[token].long()]
        parts = parts / parts.sum() if renormalize else parts
        assert torch.allclose(weights[token], parts)
    assert rows.tolist() == [[choice * 5 + token for choice in range(4)] for token in range(5)]


def test_router_gives_padding_no_expert():
    is_padding = torch.tensor([False, True])
    weights, ids, _ = route(torch.randn(2, 8), 2, True, is_padding)
    assert (ids[0] >= 0).all() and (ids[1] == -1).all()
    assert (weights[1] == 0).all() and torch.isclose(weights[0].sum(), torch.tensor(1.0))


def test_activation_multiplies_the_second_half_by_silu_of_the_first():
    x, result = torch.randn(3, 8), torch.empty(3, 4)
    stand_ins.silu_and_mul(result, x)
    assert torch.allclose(result, x[:, :4] * torch.sigmoid(x[:, :4]) * x[:, 4:])


def test_experts_of_a_token_are_added_up():
    x, output = torch.randn(3, 2, 4), torch.empty(3, 4)
    stand_ins.moe_sum(x, output, None, None)
    assert torch.allclose(output, x[:, 0] + x[:, 1])


@pytest.mark.parametrize("is_column_major", [True, False])
def test_groups_are_quantised_to_the_whole_range_of_fp8(is_column_major):
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    quantised = torch.empty(6, 256, dtype=torch.float8_e4m3fn)
    scales = torch.empty(2, 6).T if is_column_major else torch.empty(6, 2)
    options = (128, 1e-10, -448.0, 448.0, False, is_column_major, False)
    stand_ins.per_token_group_fp8_quant(x, quantised, scales, *options)
    assert torch.allclose(quantised.float().view(6, 2, 128).abs().amax(-1), torch.tensor(448.0))
    back = quantised.float().view(6, 2, 128) * scales.unsqueeze(-1)
    assert torch.allclose(back.view(6, 256), x.float(), rtol=0.07, atol=1e-3)


def test_activation_is_quantised_in_groups():
    x = torch.randn(6, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    quantised, scales = torch.empty(6, 256, dtype=torch.float8_e4m3fn), torch.empty(6, 2)
    stand_ins.silu_and_mul_per_block_quant(quantised, x, scales, 128, None, False)
    back = (quantised.float().view(6, 2, 128) * scales.unsqueeze(-1)).view(6, 256)
    expected = torch.empty(6, 256)
    stand_ins.silu_and_mul(expected, x.float())
    assert torch.allclose(back, expected, rtol=0.07, atol=1e-2)
    assert torch.allclose(quantised.float().view(6, 2, 128).abs().amax(-1), torch.tensor(448.0))


def test_activation_of_zeros_has_a_scale():
    quantised, scales = torch.empty(1, 128, dtype=torch.float8_e4m3fn), torch.empty(1, 1)
    stand_ins.silu_and_mul_per_block_quant(quantised, torch.zeros(1, 256), scales, 128, None, False)
    assert not quantised.float().any() and scales > 0


def test_other_uses_are_refused():
    ids = torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(AssertionError, match="no expert parallelism"):
        stand_ins.moe_align_block_size(ids, 1, 1, ids[0], ids[0], ids[0], ids[0], None)
    with pytest.raises(AssertionError, match="no bias"):
        stand_ins.topk_softmax(ids, ids, ids, ids, True, ids, None)


def test_operators_are_found_where_vllm_looks_for_them():
    """Runs in a process of its own, since vLLM's CPU backend has operators of the same names."""
    body = f"""
import importlib.util
import torch
name = "vllm._C_stable_libtorch"
spec = importlib.util.spec_from_file_location(name, {stand_ins.__file__!r})
spec.loader.exec_module(importlib.util.module_from_spec(spec))
weights, ids = torch.empty(2, 1), torch.empty(2, 1, dtype=torch.int32)
logits = torch.eye(2, 4)
torch.ops._moe_C.topk_softmax(weights, ids, torch.empty_like(ids), logits, True, None, None)
assert ids.flatten().tolist() == [0, 1], ids
result = torch.empty(2, 2)
torch.ops._C.silu_and_mul(result, logits)
torch.ops._moe_C.moe_sum(torch.ones(2, 3, 2), result, None, None)
assert (result == 3).all()
assert torch.ops._C.cutlass_group_gemm_supported(90) is False
"""
    ran = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
