# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The operator that runs a MoE layer: it waits for the experts, runs the kernel, releases the slot.

* The operator is opaque to torch.compile, because a step's token count picks the views that the
  kernel reads: a traced kernel would have the views of one mode baked in.
* The token count is `x.shape[0]`. It is the padded count on every path: real steps, profiling,
  dummy runs, capture.
* The slot is released even if the kernel raises.
"""

import torch
from vllm.utils.torch_utils import direct_register_custom_op

from vllm_dwdp.engine.moe.context import context


def register_op() -> None:
    """Define `torch.ops.vllm.dwdp_experts`, unless this process has defined it already."""
    if not hasattr(torch.ops.vllm, "dwdp_experts"):
        direct_register_custom_op("dwdp_experts", _experts, fake_impl=_shape)


def _experts(
    x: torch.Tensor, first: torch.Tensor, second: torch.Tensor | None, layer_idx: int
) -> torch.Tensor:
    here = context()
    layer, fetcher = here.layers[layer_idx], here.fetcher
    if here.expert_counts is not None and second is not None:
        here.expert_counts.add(layer_idx, second)
    mode = fetcher.wait(layer_idx, x.shape[0], layer.chosen(second))
    try:
        return layer.run(mode, x, first, second)
    finally:
        fetcher.release(layer_idx, mode)


def _shape(
    x: torch.Tensor, first: torch.Tensor, second: torch.Tensor | None, layer_idx: int
) -> torch.Tensor:
    return torch.empty_like(x)
