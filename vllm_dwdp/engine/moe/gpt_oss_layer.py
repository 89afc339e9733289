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

BESIDE_WEIGHTS = ("_bias", "_weight_scale")
"""Ends of the names of parameters that the checkpoint fills beside the weights."""

MXFP4_BLOCK = 32
"""Values of a weight that share a scale."""

OWN_WAYS_OF_GPT_OSS = frozenset(
    {
        *("weight_loader", "_narrow_for_rank", "_copy_to_expert", "_load_expert_bias"),
        *("_load_unquantized_expert", "_load_packed_expert"),
    }
)
"""What vLLM's GptOssRoutedExperts does in ways of its own."""


class GptOssLayer(DwdpRoutedExperts):
    """A base, in front of GptOssRoutedExperts, of the class of gpt-oss's layers.

    Construction raises ConfigError for two kinds of weights that vLLM loads in ways of their own.
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
                f"{layer_name}: dwdp can't load Quark's checkpoints of gpt-oss, since vLLM takes "
                "an expert's number among all for its row on a rank; use another checkpoint."
            )
        super().__init__(layer_name, params_dtype, moe_config, quant_config, *args, **kwargs)
        if type(self.quant_method).__name__ == "Nvfp4OnlineMoEMethod":
            raise ConfigError(
                f"{layer_name}: dwdp can't quantise gpt-oss to NVFP4 while it loads, since vLLM "
                "doesn't transpose single experts then; use a quantised checkpoint."
            )
        self._beside_weights: dict[str, set[int]] = {}

    def parts(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The rows of the rank's experts, out of a tensor of all, under names with their numbers.

        Raises ValueError for a tensor of experts that isn't of all.
        """
        before, found, behind = name.partition(OF_EXPERTS)
        if not found or not tensor.dim() or behind.partition(".")[0].isdigit():
            yield name, tensor
            return
        if len(tensor) != self.global_num_experts:
            raise ValueError(
                f"expected {self.global_num_experts} experts in the checkpoint's '{name}', got "
                f"{len(tensor)} in {list(tensor.shape)}; use a complete checkpoint that fits its "
                "configuration."
            )
        for expert in self.local_experts:
            yield f"{before}{OF_EXPERTS}{expert}.{behind}", tensor[expert]

    def held_by(
        self, weight: torch.Tensor, shard_id: str, expert_id: int
    ) -> tuple[tuple[str, ...], range]:
        if shard_id in SHARDS:
            return SHARDS[shard_id], range(expert_id, expert_id + 1)
        if expert_id is None:
            raise ValueError(
                f"{self.layer_name}: expected tensors of single experts, vLLM's loader hands over "
                f"{list(weight.shape)}; serve this checkpoint without dwdp."
            )
        return super().held_by(weight, shard_id, expert_id)

    def weight_loader(
        self,
        param: torch.nn.Parameter,
        loaded_weight: torch.Tensor,
        weight_name: str,
        shard_id: str,
        expert_id: int,
        return_success: bool = False,
    ) -> bool | None:
        """As dwdp's layer; also refuses biases and scales of a wrong size, which vLLM cuts."""
        name = weight_name.rpartition(".")[2]
        if shard_id in SHARDS and name.endswith(BESIDE_WEIGHTS):
            self._check_beside(name, shard_id, loaded_weight)
        is_local = super().weight_loader(
            param, loaded_weight, weight_name, shard_id, expert_id, return_success=True
        )
        if is_local:
            self._beside_weights.setdefault(name, set()).add(expert_id)
        return is_local if return_success else None

    weight_loader.supports_moe_loading = True  # type: ignore[attr-defined]

    def complete_loading(self) -> None:
        super().complete_loading()
        for name in self._parameters:
            missing = sorted(set(self.local_experts) - self._beside_weights.get(name, set()))
            if name.endswith(BESIDE_WEIGHTS) and missing:
                raise ValueError(
                    f"{self.layer_name}: expected {name} of experts {list(self.local_experts)} in "
                    f"the checkpoint, {missing} are missing; use a complete checkpoint."
                )

    def _check_beside(self, name: str, shard_id: str, found: torch.Tensor) -> None:
        outputs, inputs = self.loaded_rows.sizes(SHARDS[shard_id])
        is_of_blocks = name.endswith("_scale") and found.dtype == torch.uint8
        expected = outputs * inputs // MXFP4_BLOCK if is_of_blocks else outputs
        if (name.endswith("_bias") or is_of_blocks) and found.numel() != expected:
            raise ValueError(
                f"{self.layer_name}: expected {expected} values in {name} of an expert by the "
                f"model's configuration, the checkpoint has {list(found.shape)}; use a checkpoint "
                "that fits its configuration."
            )
