# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The layout of a large model, for limits that depend on a model which nobody has named."""

import mmap

from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout

NUM_LAYERS = 94
NUM_EXPERTS = 256
TENSORS = ("w13_weight", "w2_weight")
DESCRIPTION = f"a model of {NUM_LAYERS} MoE layers with {NUM_EXPERTS} experts"


def layout_of(num_ranks: int) -> RankLayout:
    """Rank 0 of a group of this size, with experts that fill whole pages."""
    placement = Placement.make(num_experts=max(NUM_EXPERTS, num_ranks), dwdp_size=num_ranks)
    page = mmap.PAGESIZE
    layer = tuple(TensorLayout(ExpertTensor(name, page), placement, page) for name in TENSORS)
    return RankLayout((layer,) * NUM_LAYERS, rank=0)
