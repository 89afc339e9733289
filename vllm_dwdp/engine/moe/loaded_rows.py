# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Tracks which rows of a MoE layer's weights the checkpoint has filled.

A checkpoint holds the experts of a layer one by one, or fused in one tensor. vLLM hands either to
the layer's `weight_loader`: as [rows, columns] of one expert, or as [experts, rows, columns] of all
experts that the rank owns; packed weights may have more axes. vLLM copies a tensor that is too
small to the upper left corner of its destination, and leaves the rest of the destination as it was.
dwdp refuses such a tensor.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch


class LoadedRows:
    """The loaded experts of one layer, for each shard: w1 (gate), w2 (down) and w3 (up).

    experts: global numbers of the experts that the rank owns. moe_config: vLLM's FusedMoEConfig.
    transposed: shards that the checkpoint has as [inputs, outputs].
    """

    def __init__(
        self, layer_name: str, experts: range, moe_config: Any, transposed: Iterable[str]
    ) -> None:
        self._layer_name = layer_name
        self._experts = experts
        self._transposed = frozenset(transposed)
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
        self,
        shards: tuple[str, ...],
        experts: range,
        weight: torch.Tensor,
        parameter: torch.Tensor,
    ) -> None:
        """Raise ValueError unless `weight` fills these experts.

        shards: what it holds of each of them. experts: global numbers, either of one expert, which
        may be another rank's, or of all that this rank owns. parameter: the one that it is copied
        to.
        """
        if not self._shapes.keys() >= set(shards):
            return
        what = " and ".join(shards)
        if len(experts) > 1 and experts != self._experts:
            raise ValueError(
                f"{self._layer_name}: expected {what} of the {len(self._experts)} experts from "
                f"{self._experts.start} on, vLLM's loader hands over {len(experts)} from "
                f"{experts.start} on; serve this model without dwdp."
            )
        shape, pack = self.sizes(shards), self._pack(shards, parameter)
        if pack == 1:
            shape = shape[::-1] if self._transposed >= set(shards) else shape
            fits = tuple(weight.shape[-2:]) == shape
        else:  # a packed weight may have any shape, so only its values are counted
            fits = pack * weight.numel() == len(experts) * math.prod(shape)
        if not fits:
            packed = "" if pack == 1 else f", {pack:g} values in each element,"
            raise ValueError(
                f"{self._layer_name}: expected {what} of an expert as {list(shape)}{packed} by "
                f"the model's configuration, the checkpoint has {list(weight.shape[-2:])}; use a "
                "checkpoint that fits its configuration."
            )

    def sizes(self, shards: tuple[str, ...]) -> tuple[int, int]:
        """(outputs, inputs) of these shards of an expert, one above the other."""
        outputs, inputs = self._shapes[shards[0]]
        return outputs * len(shards), inputs

    def _pack(self, shards: tuple[str, ...], parameter: torch.Tensor) -> float:
        """How many values of a weight one element of the parameter holds."""
        num_shards = 1 if "w2" in shards else len(self._shapes) - 1
        return num_shards * self._num_padded_values * len(parameter) / parameter.numel()

    def note(self, shards: tuple[str, ...], experts: range) -> None:
        """Note that vLLM has copied these shards of these experts."""
        for shard in self._loaded.keys() & set(shards):
            self._loaded[shard].update(experts)

    def check_complete(self) -> None:
        """Raise ValueError if a shard of a local expert is missing: its memory holds garbage."""
        for shard_id, loaded in self._loaded.items():
            if missing := sorted(set(self._experts) - loaded):
                raise ValueError(
                    f"{self._layer_name}: expected {shard_id} of experts {list(self._experts)} "
                    f"in the checkpoint, {missing} are missing; use a complete checkpoint."
                )
