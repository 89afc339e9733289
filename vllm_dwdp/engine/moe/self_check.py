# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks that a bound layer holds no tensor and no count that is still of its local experts only.

A kernel with such a count or tensor would read other experts' weights, or past the end of its own.
So a start ends where one is found, with its place.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.moe.expert_rows import ExpertRows
from vllm_dwdp.engine.moe.holders import Place, derived_tensors, held_tensors

COUNTING = ("num_experts", "num_local_experts")
"""Endings of the names by which vLLM's layers, methods and kernels count their experts."""


class SelfCheck:
    """What a layer and its kernel held with local experts, to compare with what they hold later.

    rows: the layer's tensors of experts; tensors: those, as long as they are local.
    """

    def __init__(
        self, layer: Any, rows: Sequence[ExpertRows], tensors: Sequence[torch.Tensor]
    ) -> None:
        self._layer_name = layer.layer_name
        self._num_local = len(layer.local_experts)
        self._rows = rows
        self._owners = dict(_owners(derived_tensors(layer), tensors))

    def run(self, layer: Any, tensors: Sequence[torch.Tensor]) -> None:
        """Check a layer that is bound to `tensors` of all experts, in the order of rows.

        Raises ConfigError with the place of what still shows local experts.
        """
        held, derived = held_tensors(layer), derived_tensors(layer)
        for rows in self._rows:
            shape = rows.shape_of(layer.global_num_experts)
            for place in rows.places:
                if (found := held.get(place)) is None or found.shape != shape:
                    self._refuse(place, "isn't bound to the experts of all ranks")
        for place, owner in self._owners.items():
            found = derived.get(place)
            place_of_owner = self._rows[owner].places[0]
            if not _same(found, tensors[owner]) and not _same(found, held.get(place_of_owner)):
                self._refuse(place, f"isn't a view of '{self._rows[owner].name}' of all ranks")
        if self._num_local < layer.global_num_experts:
            for place in self._stale_counts(layer):
                self._refuse(place, f"still counts {self._num_local} experts")

    def _stale_counts(self, layer: Any) -> Iterator[Place]:
        method = layer.quant_method
        for place, holder in (
            ((), layer),
            (("quant_method",), method),
            (("quant_method", "moe"), method.moe),
            (("quant_method", "moe_kernel", "fused_experts"), method.moe_kernel.fused_experts),
        ):
            for name, value in vars(holder).items():
                if isinstance(value, int) and value == self._num_local and name.endswith(COUNTING):
                    yield (*place, name)

    def _refuse(self, place: Place, why: str) -> None:
        raise ConfigError(
            f"{self._layer_name}: '{'.'.join(place)}' {why}, so dwdp can't share this layer; "
            "choose another kernel with --moe-backend, or serve this model without dwdp."
        )


def _owners(
    derived: dict[Place, torch.Tensor], tensors: Sequence[torch.Tensor]
) -> Iterator[tuple[Place, int]]:
    """For each derived tensor that shows a tensor of experts, the index of that one."""
    for place, tensor in derived.items():
        for idx, owner in enumerate(tensors):
            if tensor.numel() and _same(tensor, owner):
                yield place, idx
                break


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two tensors show the same memory."""
    if one is None or other is None:
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
