# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Compares a MoE layer over direct views and slots with the same layer over private memory.

Outputs must have equal bits; times are given as ratios. The kernels are PyTorch's grouped matrix
products, which may read weights by TMA. The private output is compared with a layer in float32.
"""

import functools

import torch
from figures import say
from gpu import median_seconds
from parts import Need, part, run_parts
from rank_pair import RankPair

NUM_EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 32, 4, 2048, 1408


def forward(x, ids, shares, weights):
    """Outputs [tokens, hidden] of a MoE layer.

    x [tokens, hidden]; ids [tokens, top_k]: chosen experts; shares [tokens, top_k]: their weights.
    """
    order, ends = sort(ids)
    outputs = multiply(x[order // TOP_K], ends, *weights)
    by_choice = torch.empty_like(outputs).index_copy_(0, order, outputs).view(*ids.shape, HIDDEN)
    return (by_choice * shares.unsqueeze(-1)).sum(1)


def sort(ids):
    """The order of choices sorted by expert, and the end of each expert's choices in it."""
    chosen, order = ids.flatten().sort(stable=True)
    experts = torch.arange(NUM_EXPERTS, device=ids.device)
    return order, torch.searchsorted(chosen, experts, right=True).int()


def multiply(rows, ends, w13, w2):
    """The part of the layer that reads weights. rows [choices, hidden], sorted by expert."""
    gate, up = torch.nn.functional.grouped_mm(rows, w13.transpose(1, 2), offs=ends).chunk(2, -1)
    hidden = torch.nn.functional.silu(gate) * up
    return torch.nn.functional.grouped_mm(hidden, w2.transpose(1, 2), offs=ends)


def reference(x, ids, shares, weights):
    w13, w2 = weights
    outputs = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(NUM_EXPERTS):
        tokens, choices = (ids == expert).nonzero(as_tuple=True)
        gate, up = (x[tokens].float() @ w13[expert].float().T).chunk(2, -1)
        hidden = torch.nn.functional.silu(gate) * up @ w2[expert].float().T
        outputs.index_add_(0, tokens, hidden * shares[tokens, choices].float().unsqueeze(-1))
    return outputs


def route(num_tokens):
    logits = torch.randn(num_tokens, NUM_EXPERTS, device="cuda")
    shares, ids = logits.softmax(-1).topk(TOP_K)
    return ids, (shares / shares.sum(-1, keepdim=True)).bfloat16()


@functools.cache
def layers(device):
    """A pair of ranks, and by memory the weights [w13, w2] of layer 0."""
    torch.manual_seed(0)
    shapes = {
        "w13_weight": (NUM_EXPERTS, 2 * INTERMEDIATE, HIDDEN),
        "w2_weight": (NUM_EXPERTS, HIDDEN, INTERMEDIATE),
    }
    weights = [
        {name: (torch.randn(shape) / 32).bfloat16() for name, shape in shapes.items()}
        for _ in range(2)
    ]
    pair = RankPair.of_weights(device, weights)
    pair.make_scheduler()
    pair.scheduler.wait(0, 1)
    device.synchronize_all()
    return pair, {
        "private": [weight.cuda() for weight in weights[0].values()],
        "direct": list(pair.tensors(pair.direct, 0).values()),
        "prefetch": list(pair.tensors(pair.on_slot, 0).values()),
    }


def compare(device, num_tokens, ratio):
    """ratio: the expected range of the time over a view, divided by that over private memory."""
    pair, by_memory = layers(device)
    x = torch.randn(num_tokens, HIDDEN, device="cuda").bfloat16()
    ids, shares = route(num_tokens)
    exact = reference(x, ids, shares, by_memory["private"])
    outputs = {name: forward(x, ids, shares, weights) for name, weights in by_memory.items()}
    error = ((outputs["private"].float() - exact).norm() / exact.norm()).item()
    assert error < 0.01, error
    order, ends = sort(ids)
    rows = x[order // TOP_K]
    works = [functools.partial(multiply, rows, ends, *weights) for weights in by_memory.values()]
    plain, *times = median_seconds(works, repeats=50)
    views = ("direct", "prefetch")
    for name in views:
        assert torch.equal(outputs[name], outputs["private"]), name
    ratios = {f"{n}_ratio": round(t / plain, 4) for n, t in zip(views, times, strict=True)}
    say(
        f"MoE forward over views, {num_tokens} tokens",
        bitwise_equal=views,
        error_to_float32=round(error, 5),
        plain_ms=round(plain * 1e3, 3),
        view_mib=sum(device.bytes_of(v).nbytes for v in pair.direct[0]) >> 20,
        **ratios,
        expected=dict.fromkeys(ratios, ratio),
    )


@part("64 tokens, bound by memory", Need.TORCH)
def few_tokens(device):
    compare(device, 64, (0.9, 1.1))


@part("8192 tokens, bound by arithmetic", Need.TORCH)
def many_tokens(device):
    compare(device, 8192, (0.95, 1.03))


if __name__ == "__main__":
    run_parts(few_tokens, many_tokens)
