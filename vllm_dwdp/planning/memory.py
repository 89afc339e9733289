# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Memory of one rank: experts, slots, other weights, and what is left for the KV cache."""

from dataclasses import dataclass

from vllm_dwdp.planning import constants
from vllm_dwdp.planning.hardware import Hardware
from vllm_dwdp.planning.model import MoeModel
from vllm_dwdp.planning.spread import Spread


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank. budget: what vLLM may use. kv_tokens: what the KV cache has room for."""

    resident_experts: int
    slots: int
    rest: int
    activations: int
    budget: int
    kv_tokens: int

    @property
    def fits(self) -> bool:
        return self.kv_tokens > 0


def rank_memory(
    model: MoeModel,
    hardware: Hardware,
    spread: Spread,
    *,
    max_tokens: int,
    has_slots: bool,
) -> RankMemory:
    """max_tokens: of a step (--max-num-batched-tokens). has_slots: whether anything is copied."""
    experts = round(model.num_moe_layers * spread.owned * model.expert_bytes)
    slots = constants.NUM_SLOTS * spread.fetch_bytes if has_slots else 0
    activations = activation_bytes(model, max_tokens)
    on_gpu = hardware.kind == "gpu"
    share = constants.GPU_MEMORY_SHARE if on_gpu else 1.0
    budget = hardware.memory * share - (constants.RESERVED_BYTES if on_gpu else 0)
    left = budget - experts - slots - model.rest_bytes - activations
    tokens = max(0, int(left // model.kv_bytes_per_token))
    rest = round(model.rest_bytes)
    return RankMemory(experts, slots, rest, activations, round(budget), tokens)


def activation_bytes(model: MoeModel, max_tokens: int) -> int:
    """Bytes of the largest activations of a step, in BF16: those around the routed experts.

    Four hidden states (input, residual, output, one for exchange), and for each chosen expert its
    input, both halves of its first product, and its output.
    """
    width = model.expert_params // (3 * model.hidden)
    numbers = 4 * model.hidden + model.top_k * (2 * model.hidden + 2 * width)
    return 2 * max_tokens * numbers
