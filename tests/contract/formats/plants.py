# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Mistakes to plant in the layers of ranks; dwdp must refuse each, or the comparison must find it.

Each stands for what an unknown method or kernel could do.
"""

from typing import Any

import torch


def axis(layer: Any) -> None:
    """Scales with experts on their second axis."""
    scales = layer.w2_weight_scale_inv.data.transpose(0, 1).contiguous()
    layer.w2_weight_scale_inv = torch.nn.Parameter(scales, requires_grad=False)


def strides(layer: Any) -> None:
    """Weights whose experts aren't outermost in memory."""
    weight = layer.w13_weight
    weight.data = weight.data.transpose(0, 1).contiguous().transpose(0, 1)


def own_rows(layer: Any) -> None:
    """A kernel that has copied the scales of local experts."""
    experts = layer.quant_method.moe_kernel.fused_experts
    experts.own_scales = layer.w13_weight_scale_inv.data.clone()


def stale_count(layer: Any) -> None:
    """A kernel that has counted local experts."""
    layer.quant_method.moe_kernel.fused_experts.my_num_experts = len(layer.local_experts)


def second_name(layer: Any) -> None:
    """A plain attribute that shows the weights under another name: no mistake, it must follow."""
    layer.w13_view = layer.w13_weight.data


def reduced_scale(layer: Any) -> None:
    """Activation scales that are the largest of local experts."""
    first = 1.0 + len(layer.local_experts)
    layer.w13_input_scale.data.fill_(first)


def processed_twice(layer: Any) -> None:
    """A kernel that processes the weights again when it is made again."""
    make = layer.quant_method.get_fused_moe_quant_config

    def process_and_make(bound: Any) -> Any:
        bound.w13_weight_scale_2.data.mul_(2)
        return make(bound)

    layer.quant_method.get_fused_moe_quant_config = process_and_make


BLOCKS, NVFP4 = "fp8 in blocks, TRITON, sm90", "modelopt nvfp4, FLASHINFER_TRTLLM, sm100"
PLANTS = {
    axis: BLOCKS,
    strides: BLOCKS,
    own_rows: BLOCKS,
    stale_count: BLOCKS,
    second_name: BLOCKS,
    reduced_scale: "fp8, static, TRITON, sm90",
    processed_twice: NVFP4,
}
"""Each mistake, and the case in whose layers to plant it once they are processed."""
