# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A MoE layer's forward over private memory, direct views and slots: equal bits, times as ratios.

Kernels: PyTorch's grouped matrix products, which may read weights by TMA. Reference:
the same layer in float32, an expert at a time.
"""

import torch
from figures import say
from gpu import Gpu, bytes_of, median_seconds
from rank_pair import RankPair

NUM_EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 32, 4, 2048, 1408
TOKENS = (64, 8192)
"""Bound by memory, bound by arithmetic."""


def forward(x, ids, shares, weights):
    """x [tokens, hidden]; ids, shares [tokens, top_k]: the chosen experts and their parts."""
    order, ends = sort(ids)
    outputs = multiply(x[order // TOP_K], ends, *weights)
    by_choice = torch.empty_like(outputs).index_copy_(0, order, outputs).view(*ids.shape, HIDDEN)
    return (by_choice * shares.unsqueeze(-1)).sum(1)


def sort(ids):
    """Choices in the order of their experts, and where each expert's end."""
    chosen, order = ids.flatten().sort(stable=True)
    experts = torch.arange(NUM_EXPERTS, device=ids.device)
    return order, torch.searchsorted(chosen, experts, right=True).int()


def multiply(rows, ends, w13, w2):
    """All that reads weights. rows [choices, hidden], sorted by expert."""
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


def compare(num_tokens):
    x = torch.randn(num_tokens, HIDDEN, device="cuda").bfloat16()
    ids, shares = route(num_tokens)
    expected = forward(x, ids, shares, private)
    exact = reference(x, ids, shares, private)
    error = ((expected.float() - exact).norm() / exact.norm()).item()
    assert error < 0.01, error
    order, ends = sort(ids)
    rows = x[order // TOP_K]
    works = [lambda: multiply(rows, ends, *private)]
    for name, weights in views.items():
        assert torch.equal(forward(x, ids, shares, weights), expected), name
        works.append(lambda weights=weights: multiply(rows, ends, *weights))
    plain, *times = median_seconds(works, repeats=50)
    ratios = {f"{n}_ratio": round(t / plain, 4) for n, t in zip(views, times, strict=True)}
    say(
        f"MoE forward over views, {num_tokens} tokens",
        bitwise_equal=sorted(views),
        error_to_float32=round(error, 5),
        plain_ms=round(plain * 1e3, 3),
        view_mib=sum(bytes_of(v).nbytes for v in pair.direct[0]) >> 20,
        **ratios,
        at_most=dict.fromkeys(ratios, 1.01),
    )


gpu = Gpu()
torch.manual_seed(0)
shapes = {
    "w13_weight": (NUM_EXPERTS, 2 * INTERMEDIATE, HIDDEN),
    "w2_weight": (NUM_EXPERTS, HIDDEN, INTERMEDIATE),
}
pair = RankPair(gpu, shapes, num_layers=2)
private = [w.cuda() for w in pair.weights[0].values()]
pair.scheduler.wait(0, 1)
views = {"direct": pair.tensors(pair.direct, 0), "prefetch": pair.tensors(pair.on_slot, 0)}
torch.cuda.synchronize()
for num_tokens in TOKENS:
    compare(num_tokens)
