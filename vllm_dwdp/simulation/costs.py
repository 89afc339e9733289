# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a step costs: the only thing that the simulator must be told of a model and its hardware."""

from dataclasses import dataclass
from typing import Protocol

from vllm_dwdp.simulation.chunk import Chunk


class StepCosts(Protocol):
    """Seconds and bytes of one rank at normal speed. All methods are pure functions."""

    @property
    def num_layers(self) -> int:
        """MoE layers of the model."""

    @property
    def peer_bytes(self) -> float:
        """Bytes that a rank reads from each of its peers for one layer."""

    @property
    def ingress_bytes_per_s(self) -> float:
        """The most that a rank receives, from all its peers together."""

    @property
    def egress_bytes_per_s(self) -> float:
        """The most that a rank's memory gives, to all ranks that read it together."""

    def step_s(self, chunk: Chunk) -> float:
        """Seconds of a step outside of its MoE layers: dense layers, scheduler, sampler."""

    def attention_s(self, chunk: Chunk) -> float:
        """Seconds of one layer before its experts: attention and everything that isn't experts."""

    def experts_s(self, num_tokens: float) -> float:
        """Seconds of one layer's experts for `num_tokens` tokens, with all their chosen experts."""

    def exchange_s(self, num_tokens: float) -> float:
        """Seconds of one all-to-all of expert parallelism, after all ranks have come to it.

        num_tokens: the tokens of the rank that has most of them.
        """

    def copy_slowdown(self, chunk: Chunk) -> float:
        """How many times as long the layers of DWDP compute because they copy experts."""


@dataclass(frozen=True)
class LayerCosts:
    """StepCosts that grow in proportion to tokens. Times are in seconds, sizes in bytes.

    attention_s_per_pair: seconds for a pair of a token and a token that it attends to.
    experts_least_s: the least time of a layer's experts, however few its tokens: the kernel reads
        their weights.
    barrier_s: seconds of an all-to-all without tokens.
    fixed_step_s: seconds of a step outside of its MoE layers, whatever its tokens.
    slowdown: how many times as long DWDP computes because copies run beside it.
    """

    num_layers: int
    peer_bytes: float
    ingress_bytes_per_s: float
    egress_bytes_per_s: float
    attention_s_per_token: float
    experts_s_per_token: float
    attention_s_per_pair: float = 0.0
    experts_least_s: float = 0.0
    exchange_s_per_token: float = 0.0
    barrier_s: float = 0.0
    fixed_step_s: float = 0.0
    slowdown: float = 1.0

    def step_s(self, chunk: Chunk) -> float:
        return self.fixed_step_s

    def attention_s(self, chunk: Chunk) -> float:
        of_pairs = chunk.num_pairs() * self.attention_s_per_pair
        return chunk.num_tokens * self.attention_s_per_token + of_pairs

    def experts_s(self, num_tokens: float) -> float:
        return max(self.experts_least_s, num_tokens * self.experts_s_per_token)

    def exchange_s(self, num_tokens: float) -> float:
        return self.barrier_s + num_tokens * self.exchange_s_per_token

    def copy_slowdown(self, chunk: Chunk) -> float:
        return self.slowdown
