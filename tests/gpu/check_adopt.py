# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Adopting layers out of PyTorch's memory: at most one layer is there twice.

As `vllm_dwdp.engine.adoption.adopt` does it, which needs vLLM. The GPU must be nobody else's.
"""

import torch
from figures import say
from gpu import Gpu

from vllm_dwdp.layout import ExpertTensor, TensorLayout
from vllm_dwdp.memory.local_shard import LocalShard
from vllm_dwdp.placement import Placement

NUM_LAYERS, NUM_EXPERTS = 12, 64
SHAPES = {"w13_weight": (2816, 2048), "w2_weight": (2048, 1408)}


def used_bytes():
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


driver = Gpu().driver()
placement = Placement.make(num_experts=NUM_EXPERTS, dwdp_size=2)
num_local = len(placement.local_experts(0))
loaded = [
    [torch.ones(num_local, *shape, device="cuda").bfloat16() for shape in SHAPES.values()]
    for _ in range(NUM_LAYERS)
]
layout = tuple(
    TensorLayout(ExpertTensor(name, tensor[0].nbytes), placement, driver.granularity)
    for name, tensor in zip(SHAPES, loaded[0], strict=True)
)
layer_bytes = sum(tensor.nbytes for tensor in loaded[0])
torch.cuda.empty_cache()
before = used_bytes()
shard = LocalShard(driver, [layout] * NUM_LAYERS, 0)
extra = []
for tensors in loaded:
    shard.adopt_layer([tensor.data_ptr() for tensor in tensors])
    extra.append(used_bytes() - before)
    tensors.clear()
    torch.cuda.empty_cache()
shard.seal()
say(
    f"adopting {NUM_LAYERS} layers out of PyTorch's memory",
    layer_mib=layer_bytes >> 20,
    peak_in_layers=round(max(extra) / layer_bytes, 3),
    settled_in_layers=round((used_bytes() - before) / layer_bytes, 3),
    at_most={"peak_in_layers": 1.1, "settled_in_layers": 0.1},
)
