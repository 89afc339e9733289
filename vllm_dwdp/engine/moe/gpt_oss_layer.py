# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""dwdp's layer for gpt-oss, whose own class loads either all experts at once or single ones.

vLLM's code for tensors of all experts knows no layer that owns only some. So dwdp's loader hands
over a tensor's rows one by one, under names as of a checkpoint with an expert in each tensor.
"""

from collections.abc import Iterator
from typing import Any

import torch

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.moe.routed_experts import DwdpRoutedExperts

OF_EXPERTS = ".mlp.experts."
"""Part of the names of the checkpoint's expert tensors."""

SHARDS = {"gpt_oss_w13": ("w1", "w3"), "gpt_oss_w2": ("w2",)}
"""The matrices of an expert by vLLM's names of what a tensor holds."""

OWN_WAYS = frozenset(
    {
        *("weight_loader", "_narrow_for_rank", "_copy_to_expert", "_load_expert_bias"),
        *("_load_unquantized_expert", "_load_packed_expert"),
    }
)
"""What vLLM's GptOssRoutedExperts does in ways of its own."""


class GptOssLayer(DwdpRoutedExperts):
    """A base, in front of GptOssRoutedExperts, of the class of gpt-oss's layers.

    Construction raises ConfigError for Quark's checkpoints: vLLM takes an expert's global number
    for its row.
    """

    TRANSPOSED = frozenset({"w1", "w2", "w3"})

    def __init__(
        self,
        layer_name: str,
        params_dtype: torch.dtype,
        moe_config: Any,
        quant_config: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if quant_config is not None and quant_config.get_name() == "quark":
            raise ConfigError(
                f"{layer_name}: dwdp can't load Quark's checkpoints of gpt-oss, since vLLM loads "
                "all of their experts on every rank; use another checkpoint."
            )
        super().__init__(layer_name, params_dtype, moe_config, quant_config, *args, **kwargs)

    def held_by(
        self, weight: torch.Tensor, shard_id: str, expert_id: int
    ) -> tuple[tuple[str, ...], range]:
        if shard_id in SHARDS:
            return SHARDS[shard_id], range(expert_id, expert_id + 1)
        return super().held_by(weight, shard_id, expert_id)


def numbered(name: str, tensor: torch.Tensor, experts: range) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of these experts, out of a checkpoint's tensor of all experts.

    Other tensors stay as they are.
    """
    before, found, behind = name.partition(OF_EXPERTS)
    if not found or behind.partition(".")[0].isdigit():
        yield name, tensor
        return
    for expert in experts:
        yield f"{before}{OF_EXPERTS}{expert}.{behind}", tensor[expert]
