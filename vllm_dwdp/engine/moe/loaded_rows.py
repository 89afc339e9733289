# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Tracks which rows of a MoE layer's weights the checkpoint has filled.

A checkpoint holds the experts of a layer one by one, or fused in one tensor. vLLM hands either to
the layer's `weight_loader`: as [rows, columns] of one expert, or as [experts, rows, columns] of all
experts that the rank owns. vLLM copies a tensor that is too small to the upper left corner of its
destination, and leaves the rest of the destination as it was. dwdp refuses such a tensor.
"""

import math
from typing import Any

import torch


class LoadedRows:
    """The loaded experts of one layer, for each shard: w1 (gate), w2 (down) and w3 (up).

    experts: global numbers of the experts that the rank owns. moe_config: vLLM's FusedMoEConfig.
    """

    def __init__(self, layer_name: str, experts: range, moe_config: Any) -> None:
        self._layer_name = layer_name
        self._experts = experts
        hidden = moe_config.hidden_dim_unpadded
        intermediate = moe_config.intermediate_size_per_partition_unpadded
        self._shapes = {"w1": (intermediate, hidden), "w2": (hidden, intermediate)}
        if moe_config.is_act_and_mul:
            self._shapes["w3"] = (intermediate, hidden)
        self._num_padded_values = moe_config.hidden_dim * moe_config.intermediate_size_per_partition
        self._loaded: dict[str, set[int]] = {shard_id: set() for shard_id in self._shapes}

    @property
    def is_empty(self) -> bool:
        return not any(self._loaded.values())

    def check(
        self, shard_id: str, expert: int, weight: torch.Tensor, parameter: torch.Tensor
    ) -> None:
        """Raise ValueError unless `weight` fills one expert or, with three axes, all of the rank's.

        expert: the global number of its first expert. parameter: the one that it is copied to.
        """
        if shard_id not in self._shapes:
            return
        if weight.dim() == 3 and (expert, len(weight)) != (self._experts.start, len(self._experts)):
            raise ValueError(
                f"{self._layer_name}: expected {shard_id} of the {len(self._experts)} experts from "
                f"{self._experts.start} on, vLLM's loader hands over {len(weight)} from {expert} "
                "on; serve this model without dwdp."
            )
        shape, pack = self._shapes[shard_id], self._pack(shard_id, parameter)
        found = tuple(weight.shape[-2:])
        if not _fits(found, shape, pack):
            packed = "" if pack == 1 else f", {pack:g} values in each element,"
            raise ValueError(
                f"{self._layer_name}: expected {shard_id} of an expert as {list(shape)}{packed} by "
                f"the model's configuration, the checkpoint has {list(found)}; use a checkpoint "
                "that fits its configuration."
            )

    def _pack(self, shard_id: str, parameter: torch.Tensor) -> float:
        """How many values of a weight one element of the parameter holds."""
        num_shards = 1 if shard_id == "w2" else len(self._shapes) - 1
        return num_shards * self._num_padded_values * len(parameter) / parameter.numel()

    def note(self, shard_id: str, expert: int, weight: torch.Tensor) -> None:
        """Note that vLLM has copied `weight`, whose first expert is `expert`."""
        if shard_id in self._shapes:
            num_experts = len(weight) if weight.dim() == 3 else 1
            self._loaded[shard_id].update(range(expert, expert + num_experts))

    def check_complete(self) -> None:
        """Raise ValueError if a shard of a local expert is missing: its memory holds garbage."""
        for shard_id, loaded in self._loaded.items():
            if missing := sorted(set(self._experts) - loaded):
                raise ValueError(
                    f"{self._layer_name}: expected {shard_id} of experts {list(self._experts)} "
                    f"in the checkpoint, {missing} are missing; use a complete checkpoint."
                )


def _fits(found: tuple[int, ...], shape: tuple[int, ...], pack: float) -> bool:
    """Whether a weight fits. A packed one may be transposed, so only its values are counted."""
    if pack == 1:
        return found == shape
    return pack * math.prod(found) == math.prod(shape)
