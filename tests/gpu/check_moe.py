# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A MoE layer's forward over private memory, direct views and slots: equal bits, times as ratios.

Reference: the same layer in float32, a token at a time. Kernels: batched matrix products over all
experts, which read every weight once.
"""

import torch
from figures import say
from gpu import Gpu, bytes_of, median_seconds
from rank_pair import RankPair

NUM_EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 32, 4, 2048, 1408
TOKENS = 64


def forward(x, routing, w13, w2):
    """x [tokens, hidden]; routing [tokens, experts], zero where not chosen."""
    each = x.expand(NUM_EXPERTS, -1, -1)
    gate, up = torch.bmm(each, w13.transpose(1, 2)).chunk(2, dim=-1)
    outputs = torch.bmm(torch.nn.functional.silu(gate) * up, w2.transpose(1, 2))
    return torch.einsum("te,eth->th", routing.to(outputs.dtype), outputs)


def reference(x, routing, w13, w2):
    outputs = torch.zeros(TOKENS, HIDDEN, dtype=torch.float32, device=x.device)
    for token in range(TOKENS):
        for expert in routing[token].nonzero().flatten().tolist():
            gate, up = (w13[expert].float() @ x[token].float()).chunk(2)
            hidden = torch.nn.functional.silu(gate) * up
            outputs[token] += routing[token, expert] * (w2[expert].float() @ hidden)
    return outputs


def route():
    logits = torch.randn(TOKENS, NUM_EXPERTS, device="cuda")
    weights, ids = logits.softmax(-1).topk(TOP_K)
    return torch.zeros_like(logits).scatter_(1, ids, weights / weights.sum(-1, keepdim=True))


gpu = Gpu()
torch.manual_seed(0)
shapes = {
    "w13_weight": (NUM_EXPERTS, 2 * INTERMEDIATE, HIDDEN),
    "w2_weight": (NUM_EXPERTS, HIDDEN, INTERMEDIATE),
}
pair = RankPair(gpu, shapes, num_layers=2)
x = torch.randn(TOKENS, HIDDEN, device="cuda").bfloat16()
routing = route()
private = [w.cuda() for w in pair.weights[0].values()]
expected = forward(x, routing, *private)
exact = reference(x, routing, *private)
error = ((expected.float() - exact).abs().max() / exact.abs().max()).item()
assert error < 0.05, error
pair.scheduler.wait(0, TOKENS)
views = {"direct": pair.tensors(pair.direct, 0), "prefetch": pair.tensors(pair.on_slot, 0)}
torch.cuda.synchronize()
works = [lambda: forward(x, routing, *private)]
for name, tensors in views.items():
    assert torch.equal(forward(x, routing, *tensors), expected), name
    works.append(lambda tensors=tensors: forward(x, routing, *tensors))
plain, *times = median_seconds(works, repeats=50)
ratios = {f"{n}_ratio": round(t / plain, 4) for n, t in zip(views, times, strict=True)}
say(
    "MoE forward over views",
    bitwise_equal=sorted(views),
    error_to_float32=round(error, 4),
    plain_ms=round(plain * 1e3, 3),
    view_mib=sum(bytes_of(v).nbytes for v in pair.direct[0]) >> 20,
    **ratios,
    at_most=dict.fromkeys(ratios, 1.01),
)
