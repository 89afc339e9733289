# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Seconds of one step with what competes with DWDP: expert and tensor parallelism, replicas."""

from vllm_dwdp.planning import constants
from vllm_dwdp.planning.formats import FORMATS
from vllm_dwdp.planning.model import MoeModel
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.roofline import layer_seconds, share_chosen
from vllm_dwdp.planning.skew import waiting_seconds
from vllm_dwdp.planning.workload import Workload


def expert_parallel_step(model: MoeModel, rates: Rates, work: Workload, num_ranks: int) -> float:
    """Seconds of one forward pass of all ranks, each with the tokens of `work`.

    Every layer has two all-to-alls, at each of which all ranks wait for the slowest.
    """
    read = experts_read(model, work.tokens, num_ranks)
    moe = layer_seconds(model, rates, work, experts_read=read)
    dense = layer_seconds(model, rates, work, is_moe=False)
    waits = model.num_moe_layers * waiting_seconds(model, moe, work, num_ranks)
    waits += model.num_dense_layers * waiting_seconds(model, dense, work, num_ranks, is_moe=False)
    sent = model.num_moe_layers * all_to_all_seconds(model, rates, work.tokens, num_ranks)
    compute = model.num_moe_layers * moe.total + model.num_dense_layers * dense.total
    return compute + sent + waits


def experts_read(model: MoeModel, tokens: float, num_ranks: int) -> float:
    """Experts that one rank of expert parallelism reads: those of its own that any rank's tokens
    choose."""
    chosen = share_chosen(num_ranks * tokens, model.top_k, model.num_experts)
    return chosen * model.num_experts / num_ranks


def all_to_all_seconds(model: MoeModel, rates: Rates, tokens: float, num_ranks: int) -> float:
    """Seconds of both all-to-alls of a layer.

    A token goes once to each other rank that has an expert of its choice. At peak rates it goes
    once for each expert on another rank, as in the paper's roofline.
    """
    if num_ranks < 2:
        return 0.0
    away = (num_ranks - 1) / num_ranks
    targets = (num_ranks - 1) * (1 - away**model.top_k)
    copies = model.top_k * away if rates.is_peak else targets
    num_bytes = tokens * copies * model.hidden * (_activation_bytes(model, rates) + 2)
    latency = 0.0 if rates.is_peak else constants.SYNCHRONOUS_COLLECTIVES * constants.COLLECTIVE_S
    return num_bytes / rates.exchange_rate + latency


def _activation_bytes(model: MoeModel, rates: Rates) -> float:
    """Bytes of a number of an activation on its way to an expert, with scales."""
    precision = rates.hardware.precision(model.formats.experts.precision)
    return FORMATS[{"fp4": "nvfp4"}.get(precision, precision)].bytes_per_param


def tensor_parallel_step(model: MoeModel, rates: Rates, work: Workload, num_ranks: int) -> float:
    """Seconds of one forward pass of one engine that spreads the tokens of `work` over its ranks.

    Every layer has two all-reduces.
    """
    moe = layer_seconds(model, rates, work, shards=num_ranks).total
    dense = layer_seconds(model, rates, work, shards=num_ranks, is_moe=False).total
    compute = model.num_moe_layers * moe + model.num_dense_layers * dense
    reduces = constants.SYNCHRONOUS_COLLECTIVES * model.num_layers
    return compute + reduces * all_reduce_seconds(model, rates, work.tokens, num_ranks)


def all_reduce_seconds(model: MoeModel, rates: Rates, tokens: float, num_ranks: int) -> float:
    """Seconds to add the hidden states of `tokens` tokens in BF16 over all ranks, in a ring."""
    if num_ranks < 2:
        return 0.0
    num_bytes = 2 * (num_ranks - 1) / num_ranks * tokens * model.hidden * 2
    return num_bytes / rates.exchange_rate + constants.COLLECTIVE_S


def replica_step(model: MoeModel, rates: Rates, work: Workload) -> float:
    """Seconds of one forward pass of a rank that has all experts itself."""
    moe = layer_seconds(model, rates, work).total
    dense = layer_seconds(model, rates, work, is_moe=False).total
    return model.num_moe_layers * moe + model.num_dense_layers * dense
