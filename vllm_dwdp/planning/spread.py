# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How the experts of a layer are spread over the ranks of a group, and what that costs to fetch."""

from dataclasses import dataclass

from vllm_dwdp.layout.placement import Placement, PlacementError
from vllm_dwdp.planning.errors import PlanError
from vllm_dwdp.planning.model import MoeModel


@dataclass(frozen=True)
class Spread:
    """owned: experts of a layer on the rank that has most; missing: that the emptiest one lacks."""

    num_ranks: int
    owned: int
    missing: int
    expert_bytes: float

    @property
    def fetch_bytes(self) -> int:
        """Bytes of one layer that a rank copies from its peers when it fetches all it lacks."""
        return round(self.missing * self.expert_bytes)


def spread_experts(
    model: MoeModel, num_ranks: int, num_experts_per_worker: int | None = None
) -> Spread:
    """Raises PlanError if the experts can't be spread so."""
    try:
        placement = Placement.make(
            num_experts=model.num_experts,
            dwdp_size=num_ranks,
            num_experts_per_worker=num_experts_per_worker,
        )
    except PlacementError as error:
        raise PlanError(str(error)) from error
    counts = [end - start for start, end in placement.ranges]
    missing = model.num_experts - min(counts)
    return Spread(num_ranks, max(counts), missing, model.expert_bytes)
