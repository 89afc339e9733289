# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Compares vLLM's Triton MoE kernels over direct views and slots with private memory.

It does so in bf16 and in block FP8. Outputs must have equal bits; times are given as ratios. The
private output is compared with a layer in float32.
"""

import functools

import packed_vllm
import torch
from check_moe import HIDDEN, INTERMEDIATE, NUM_EXPERTS, reference, route
from figures import say
from gpu import median_seconds
from parts import Need, part, run_parts
from rank_pair import RankPair

TOKENS = {64: (0.9, 1.1), 4096: (0.95, 1.03)}
"""By number of tokens, the expected range of the time over a view, divided by private memory's."""

FP8_BLOCK = 128
MAX_ERROR = {"bf16": 0.02, "block FP8": 0.06}
SHAPES = {
    "w13_weight": (NUM_EXPERTS, 2 * INTERMEDIATE, HIDDEN),
    "w2_weight": (NUM_EXPERTS, HIDDEN, INTERMEDIATE),
}


def bf16_weights():
    return {
        name: (torch.randn(shape, device="cuda") / 32).bfloat16().cpu()
        for name, shape in SHAPES.items()
    }


def fp8_weights():
    """Weights, and a scale for each block of 128 x 128 weights."""
    weights = {
        name: torch.randn(shape, device="cuda").to(torch.float8_e4m3fn).cpu()
        for name, shape in SHAPES.items()
    }
    scales = {
        f"{name}_scale_inv": (torch.rand(num_experts, rows // FP8_BLOCK, columns // FP8_BLOCK) + 1)
        / 32
        for name, (num_experts, rows, columns) in SHAPES.items()
    }
    return weights | scales


def in_float32(weights):
    """[w13, w2] on the GPU for `reference`, which converts one expert at a time to float32."""
    found = []
    for name in SHAPES:
        weight = weights[name].cuda()
        if (scale := weights.get(f"{name}_scale_inv")) is not None:
            wide = scale.cuda().repeat_interleave(FP8_BLOCK, 1).repeat_interleave(FP8_BLOCK, 2)
            weight = weight.float() * wide
        found.append(weight)
    return found


def run_kernel(x, ids, shares, weights):
    from vllm.model_executor.layers.fused_moe.config import fp8_w8a8_moe_quant_config
    from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts

    quant_config = None
    if "w13_weight_scale_inv" in weights:
        quant_config = fp8_w8a8_moe_quant_config(
            w1_scale=weights["w13_weight_scale_inv"],
            w2_scale=weights["w2_weight_scale_inv"],
            block_shape=[FP8_BLOCK, FP8_BLOCK],
        )
    w13, w2 = weights["w13_weight"], weights["w2_weight"]
    return fused_experts(x, w13, w2, shares.float(), ids.int(), quant_config=quant_config)


def compare(name, by_memory, exact_weights):
    for num_tokens, ratio in TOKENS.items():
        x = torch.randn(num_tokens, HIDDEN, device="cuda").bfloat16()
        ids, shares = route(num_tokens)
        runs = [functools.partial(run_kernel, x, ids, shares, w) for w in by_memory.values()]
        outputs = dict(zip(by_memory, (run() for run in runs), strict=True))
        exact = reference(x, ids, shares, exact_weights)
        error = ((outputs["private"].float() - exact).norm() / exact.norm()).item()
        assert error < MAX_ERROR[name], error
        plain, *times = median_seconds(runs, repeats=30)
        views = [memory for memory in by_memory if memory != "private"]
        for view in views:
            assert torch.equal(outputs[view], outputs["private"]), view
        ratios = {f"{v}_ratio": round(t / plain, 4) for v, t in zip(views, times, strict=True)}
        say(
            f"vLLM's MoE kernels over views, {name}, {num_tokens} tokens",
            bitwise_equal=views,
            error_to_float32=round(error, 5),
            plain_ms=round(plain * 1e3, 3),
            **ratios,
            expected=dict.fromkeys(ratios, ratio),
        )


def compare_memories(device, name, weights):
    version = packed_vllm.use()
    pair = RankPair.of_weights(device, [weights], num_slots=1)
    pair.make_scheduler()
    pair.scheduler.wait(0, 1)
    device.synchronize_all()
    by_memory = {
        "private": {key: weight.cuda() for key, weight in weights.items()},
        "direct": pair.tensors(pair.direct, 0),
        "prefetch": pair.tensors(pair.on_slot, 0),
    }
    say(f"vLLM of the {name} kernels", version=version, stand_ins=packed_vllm.stand_ins())
    compare(name, by_memory, in_float32(weights))


@part("vLLM's Triton MoE kernels, bf16", Need.TORCH, Need.TRITON, Need.VLLM)
def bf16(device):
    compare_memories(device, "bf16", bf16_weights())


@part("vLLM's Triton MoE kernels, block FP8", Need.TORCH, Need.TRITON, Need.VLLM)
def block_fp8(device):
    compare_memories(device, "block FP8", fp8_weights())


if __name__ == "__main__":
    run_parts(bf16, block_fp8)
