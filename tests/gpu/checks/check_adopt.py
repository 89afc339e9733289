# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks that at most one layer is in memory twice while PyTorch's layers are adopted.

It adopts as `vllm_dwdp.engine.moe.adoption.adopt` does, but without vLLM. No other process may use
the GPU.
"""

import torch
from figures import say
from parts import Need, part, run_parts

from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout
from vllm_dwdp.memory.local_shard import LocalShard

NUM_LAYERS, NUM_EXPERTS = 12, 64
SHAPES = {"w13_weight": (2816, 2048), "w2_weight": (2048, 1408)}


def used_bytes():
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


def load(num_local):
    """By layer, expert tensors [num_local, ...] in PyTorch's memory, as a loader leaves them."""
    return [
        [
            torch.ones(num_local, *shape, dtype=torch.bfloat16, device="cuda")
            for shape in SHAPES.values()
        ]
        for _ in range(NUM_LAYERS)
    ]


@part("adopting layers out of PyTorch's memory", Need.TORCH)
def adopt(device):
    driver = device.driver()
    placement = Placement.make(num_experts=NUM_EXPERTS, dwdp_size=2)
    loaded = load(len(placement.local_experts(0)))
    layout = tuple(
        TensorLayout(ExpertTensor(name, tensor[0].nbytes), placement, driver.granularity)
        for name, tensor in zip(SHAPES, loaded[0], strict=True)
    )
    layer_bytes = sum(tensor.nbytes for tensor in loaded[0])
    torch.cuda.empty_cache()
    before = used_bytes()
    shard = LocalShard(driver, RankLayout((layout,) * NUM_LAYERS, rank=0))
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
        expected={"peak_in_layers": (None, 1.1), "settled_in_layers": (None, 0.1)},
    )


if __name__ == "__main__":
    run_parts(adopt)
