# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a step costs by the planner's roofline: the planner's seconds for the simulator's steps."""

import dataclasses
from dataclasses import dataclass

from vllm_dwdp.planning import constants
from vllm_dwdp.planning.dwdp_step import prefetching_layer
from vllm_dwdp.planning.implementation import VLLM_DWDP, Implementation
from vllm_dwdp.planning.model import MoeModel
from vllm_dwdp.planning.other_steps import all_to_all_seconds, experts_read
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.roofline import LayerSeconds, expert_seconds, layer_seconds
from vllm_dwdp.planning.spread import Spread
from vllm_dwdp.simulation.chunk import Chunk

WITHOUT_RIVALS = dataclasses.replace(VLLM_DWDP, reads_peers_at_once=True)
"""This project, with kernels slowed as beside copies that never meet at a source. For scenarios,
which say themselves how ranks pull."""


@dataclass(frozen=True)
class ChunkLoad:
    """A step of the simulator as the planner's load."""

    chunk: Chunk

    @property
    def tokens(self) -> float:
        return self.chunk.num_tokens

    def pairs(self, window: int | None = None) -> float:
        return self.chunk.num_pairs(window)


@dataclass(frozen=True)
class PlannedCosts:
    """costs.StepCosts of a model on some hardware.

    how: of DWDP: whether a rank merges its own experts with copied ones, and whether rivals make
        copies longer, beside which kernels are slower. None of it concerns expert parallelism.
    expert_ranks: ranks over which the experts of a layer are spread while they compute. 1 for DWDP,
        whose ranks compute with all experts; the size of a group for expert parallelism.
    """

    model: MoeModel
    rates: Rates
    spread: Spread
    how: Implementation
    expert_ranks: int = 1

    @property
    def num_layers(self) -> int:
        return self.model.num_moe_layers

    @property
    def peer_bytes(self) -> float:
        """0 where peers' memory is read in place."""
        if self.rates.reads_in_place or not self.spread.missing:
            return 0.0
        return self.spread.fetch_bytes / (self.spread.num_ranks - 1)

    @property
    def ingress_bytes_per_s(self) -> float:
        return self.rates.copy_rate

    @property
    def egress_bytes_per_s(self) -> float:
        return self.rates.copy_rate

    def step_s(self, chunk: Chunk) -> float:
        dense = layer_seconds(self.model, self.rates, ChunkLoad(chunk), is_moe=False).total
        return self.model.num_dense_layers * dense

    def attention_s(self, chunk: Chunk) -> float:
        return self._layer(chunk).before_experts

    def experts_s(self, num_tokens: float) -> float:
        read = experts_read(self.model, num_tokens, self.expert_ranks)
        return expert_seconds(self.model, self.rates, num_tokens, read)

    def exchange_s(self, num_tokens: float) -> float:
        both = all_to_all_seconds(self.model, self.rates, num_tokens, self.expert_ranks)
        return both / constants.SYNCHRONOUS_COLLECTIVES

    def copy_slowdown(self, chunk: Chunk) -> float:
        """The planner slows only the parts before the experts; here the whole layer is slowed.

        It comes to the same time. Merging, where there is any, counts as slower too.
        """
        if not self.peer_bytes:
            return 1.0
        layer = self._layer(chunk)
        return prefetching_layer(layer, self.rates, self.spread, self.how).compute / layer.total

    def _layer(self, chunk: Chunk) -> LayerSeconds:
        return layer_seconds(self.model, self.rates, ChunkLoad(chunk))
