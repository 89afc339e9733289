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
from vllm_dwdp.engine.moe.kernel.expert_rows import ExpertRows, owner_of
from vllm_dwdp.engine.moe.kernel.holders import Place, derived_tensors, held_tensors

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
        found = {place: owner_of(t, tensors) for place, t in derived_tensors(layer).items()}
        self._owners = {place: owner for place, owner in found.items() if owner is not None}

    def run(self, layer: Any, tensors: Sequence[torch.Tensor]) -> None:
        """Check a layer that is bound to `tensors` of all experts, in the order of rows.

        Raises ConfigError with the place of what still shows local experts.
        """
        held, derived = held_tensors(layer), derived_tensors(layer)
        for rows in self._rows:
            shape = rows.with_experts(layer.global_num_experts).shape
            for place in rows.places:
                if (found := held.get(place)) is None or found.shape != shape:
                    self._refuse(place, "isn't bound to the experts of all ranks")
        for place, owner in self._owners.items():
            found, made_again = derived.get(place), held[self._rows[owner].places[0]]
            if found is None or owner_of(found, [tensors[owner], made_again]) is None:
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
