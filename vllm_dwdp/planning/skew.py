# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How long the barriers of expert parallelism wait for the slowest rank."""

import math
from statistics import NormalDist

from vllm_dwdp.planning import constants
from vllm_dwdp.planning.model import MoeModel
from vllm_dwdp.planning.roofline import LayerSeconds
from vllm_dwdp.planning.workload import Workload


def largest_of(count: int) -> float:
    """Expected largest of `count` standard normal values, by Blom's formula above 8."""
    if count < len(constants.LARGEST_OF):
        return constants.LARGEST_OF[count]
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def waiting_seconds(
    model: MoeModel, layer: LayerSeconds, work: Workload, num_ranks: int, *, is_moe: bool = True
) -> float:
    """Seconds that the average rank waits in a layer: for longer prompts and for fuller experts.

    layer: seconds of the average rank.
    """
    lengths = work.spread_of_pairs * layer.attention + work.spread_of_tokens * layer.linear
    fuller = excess_load(model, num_ranks) * layer.experts if is_moe else 0.0
    return largest_of(num_ranks) * lengths + fuller


def excess_load(model: MoeModel, num_ranks: int) -> float:
    """Expected load of the fullest rank's experts over the mean, less 1.

    A rank has num_experts / num_ranks of the experts, drawn from all without putting back. It can't
    get more than every token's choice of as many experts as it has.
    """
    most = min(1.0, model.num_experts / num_ranks / model.top_k) * num_ranks - 1
    return min(largest_of(num_ranks) * rank_load_spread(model, num_ranks), most)


def rank_load_spread(model: MoeModel, num_ranks: int) -> float:
    """Standard deviation of the load of one rank's experts, as a share of the mean load."""
    drawn = 1 / num_ranks
    return expert_load_spread(model) * math.sqrt(num_ranks / model.num_experts * (1 - drawn))


def expert_load_spread(model: MoeModel) -> float:
    """Standard deviation of the load of one expert, as a share of the mean load.

    If all tokens chose the same top_k experts, it would be sqrt(num_experts / top_k - 1).
    """
    agreed = math.sqrt(model.num_experts / model.top_k - 1)
    return constants.EXPERT_LOAD_CORRELATION * agreed
