# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A scenario: everything that decides what a simulation gives."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from vllm_dwdp.simulation.costs import StepCosts
from vllm_dwdp.simulation.errors import ScenarioError
from vllm_dwdp.simulation.named_costs import NamedCosts
from vllm_dwdp.simulation.section import SECTION
from vllm_dwdp.simulation.sections import Copies, Costs
from vllm_dwdp.simulation.speeds import Speeds
from vllm_dwdp.simulation.workload import Workload


class Strategy(StrEnum):
    """How ranks share the experts of a model."""

    DWDP = "dwdp"
    """Every rank computes all experts of its own tokens, and fetches those that it lacks."""
    DEP = "dep"
    """Attention data-parallel, experts expert-parallel: tokens travel, ranks step together."""


def costs_type(section: Any) -> str:
    """The name of the class that holds this section `costs`: with names, or with numbers."""
    names = isinstance(section, Mapping) and {"model", "hardware"} & section.keys()
    return "NamedCosts" if names or isinstance(section, NamedCosts) else "Costs"


AnyCosts = Annotated[
    Annotated[Costs, Tag("Costs")] | Annotated[NamedCosts, Tag("NamedCosts")],
    Discriminator(costs_type),
]


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Scenario:
    """One simulation. The same scenario gives the same figures, bit by bit.

    costs: what a step costs; None only where `simulate` is given costs of another source.
    ranks: ranks of the whole job. dwdp_size, dep_size: ranks of a group with each strategy;
        default: all ranks, and as `dwdp_size`.
    max_num_batched_tokens: the most tokens of a step; chunked_prefill: whether a prompt may be cut
        to fill it.
    routing_skew: standard deviation of the load of a rank's experts, divided by its mean; it slows
        only expert parallelism.
    start_within_s: each rank starts at a random time within so many seconds.
    """

    workload: Workload
    costs: AnyCosts | None = None
    ranks: int = Field(ge=1, le=100_000)
    max_num_batched_tokens: int = Field(ge=1)
    strategy: Strategy = Strategy.DWDP
    dwdp_size: int | None = Field(default=None, ge=1)
    dep_size: int | None = Field(default=None, ge=1)
    chunked_prefill: bool = True
    num_slots: int = Field(default=2, ge=1)
    copies: Copies = Field(default_factory=Copies)
    speeds: Speeds = Field(default_factory=Speeds)
    routing_skew: float = Field(default=0.0, ge=0, le=5)
    start_within_s: float = Field(default=0.0, ge=0)
    seed: int = Field(default=0, ge=0)

    def __post_init__(self) -> None:
        for name, size in (("dwdp_size", self.dwdp_ranks), ("dep_size", self.dep_ranks)):
            if self.ranks % size:
                raise ValueError(f"{name} must divide ranks, got {size} and {self.ranks}")
        if unknown := [rank for rank in self.speeds.slow if rank >= self.ranks]:
            raise ValueError(f"speeds.slow names {unknown}, but ranks end at {self.ranks - 1}")

    def step_costs(self) -> StepCosts:
        """The section `costs`, for this size of groups.

        Raises ScenarioError if there is none, or if it names what isn't known.
        """
        if self.costs is None:
            raise ScenarioError("The scenario must have a section `costs`: add one.")
        expert_ranks = self.dep_ranks if self.strategy is Strategy.DEP else 1
        return self.costs.of_group(self.dwdp_ranks, expert_ranks)

    @property
    def dwdp_ranks(self) -> int:
        """Ranks of a group that share one copy of the experts."""
        return self.dwdp_size or self.ranks

    @property
    def dep_ranks(self) -> int:
        """Ranks of a group of expert parallelism."""
        return self.dep_size or self.dwdp_ranks
