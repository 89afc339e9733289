# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The sections `costs` and `copies` of a scenario, in the units that people write."""

from enum import StrEnum

from pydantic import Field
from pydantic.dataclasses import dataclass

from vllm_dwdp.simulation.costs import LayerCosts
from vllm_dwdp.simulation.pull_order import Order
from vllm_dwdp.simulation.section import SECTION

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Costs:
    """What a step costs a rank of normal speed.

    num_layers: MoE layers of the model.
    expert_gb_per_layer: GB (10^9 bytes) of all experts of one layer. Every rank of a group owns an
        equal part of them.
    link_gb_per_s: GB a second that a rank can receive.
    source_gb_per_s: GB a second that a rank's memory can give; default: as `link_gb_per_s`.
    attention_ms_per_1000_tokens: of one layer: all of it that isn't routed experts.
    attention_ms_per_million_pairs: of one layer: in addition, for a million pairs of a token and a
        token that it attends to. A prompt of n tokens has n (n + 1) / 2 pairs.
    experts_ms_per_1000_tokens, experts_least_ms: of one layer's routed experts, and their least
        time, in which a kernel reads their weights.
    exchange_ms_per_1000_tokens, barrier_ms: of one all-to-all of expert parallelism, of which a
        layer has two, and the time of one without tokens.
    step_ms: of a step outside of its MoE layers.
    copy_slowdown: how many times as long DWDP computes because copies run beside it.
    """

    num_layers: int = Field(ge=1, le=10_000)
    expert_gb_per_layer: float = Field(ge=0)
    link_gb_per_s: float = Field(gt=0)
    attention_ms_per_1000_tokens: float = Field(ge=0)
    experts_ms_per_1000_tokens: float = Field(ge=0)
    source_gb_per_s: float | None = Field(default=None, gt=0)
    attention_ms_per_million_pairs: float = Field(default=0.0, ge=0)
    experts_least_ms: float = Field(default=0.0, ge=0)
    exchange_ms_per_1000_tokens: float = Field(default=0.0, ge=0)
    barrier_ms: float = Field(default=0.0, ge=0)
    step_ms: float = Field(default=0.0, ge=0)
    copy_slowdown: float = Field(default=1.0, ge=1)

    def of_group(self, dwdp_size: int, expert_ranks: int) -> LayerCosts:
        """The same in seconds and bytes, for ranks that share experts in groups of `dwdp_size`.

        expert_ranks: makes no difference to numbers that a scenario gives.
        """
        return LayerCosts(
            num_layers=self.num_layers,
            peer_bytes=self.expert_gb_per_layer * 1e9 / dwdp_size,
            ingress_bytes_per_s=self.link_gb_per_s * 1e9,
            egress_bytes_per_s=(self.source_gb_per_s or self.link_gb_per_s) * 1e9,
            attention_s_per_token=self.attention_ms_per_1000_tokens / 1e6,
            attention_s_per_pair=self.attention_ms_per_million_pairs / 1e9,
            experts_s_per_token=self.experts_ms_per_1000_tokens / 1e6,
            experts_least_s=self.experts_least_ms / 1e3,
            exchange_s_per_token=self.exchange_ms_per_1000_tokens / 1e6,
            barrier_s=self.barrier_ms / 1e3,
            fixed_step_s=self.step_ms / 1e3,
            slowdown=self.copy_slowdown,
        )


class Pulls(StrEnum):
    """How a rank divides the copy of a layer."""

    WHOLE = "whole"
    """All that it lacks of one peer, then all of the next one."""
    SLICES = "slices"
    """A slice of each peer in turn, each simulated: for groups of up to about 16 ranks."""
    SPREAD = "spread"
    """From all peers at once and evenly, the limit of small slices: for groups of any size."""


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Copies:
    """How ranks pull experts.

    slice_mib: MiB of the largest slice, for `slices`.
    in_flight: how many pulls a rank has under way at a time, for `whole` and `slices`.
    order: the order of the peers, for `whole` and `slices`.
    """

    pulls: Pulls = Pulls.SPREAD
    slice_mib: float = Field(default=64.0, gt=0)
    in_flight: int = Field(default=1, ge=1)
    order: Order = Order.ROTATED

    @property
    def slice_bytes(self) -> float:
        """The size in bytes of the largest pull; infinite if peers' parts aren't cut."""
        return self.slice_mib * MIB if self.pulls is Pulls.SLICES else float("inf")
