# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Seconds of a decode step: every weight that is needed is read once, and the KV cache."""

from vllm_dwdp.planning import constants
from vllm_dwdp.planning.model import MoeModel
from vllm_dwdp.planning.other_steps import all_to_all_seconds, experts_read
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.roofline import layer_seconds, share_chosen
from vllm_dwdp.planning.spread import Spread
from vllm_dwdp.planning.workload import Workload


def decode_seconds(
    model: MoeModel, rates: Rates, spread: Spread, *, batch: int, context: float
) -> float:
    """Seconds of a DWDP rank's step with a token for each of `batch` sequences.

    context: tokens that each sequence has in the KV cache. Chosen experts that the rank lacks come
    over the link, since a small step has nothing to hide a copy under.
    """
    chosen = share_chosen(batch, model.top_k, model.num_experts)
    own = chosen * (model.num_experts - spread.missing)
    # Where peers' memory is as fast as own memory, the link is that memory.
    fetched = rates.copy_s(chosen * spread.fetch_bytes)
    return _step(model, rates, batch, context, own, fetched)


def expert_parallel_decode_seconds(
    model: MoeModel, rates: Rates, num_ranks: int, *, batch: int, context: float
) -> float:
    """Seconds of a step of expert parallelism, with `batch` sequences on each rank."""
    read = experts_read(model, batch, num_ranks)
    sent = all_to_all_seconds(model, rates, batch, num_ranks)
    return _step(model, rates, batch, context, read, sent)


def _step(
    model: MoeModel, rates: Rates, batch: int, context: float, read: float, extra: float
) -> float:
    """read: experts of a layer that are read out of own memory; extra: seconds added to each."""
    work = Workload(batch, 1)  # attention to earlier tokens is the reading of the KV cache below
    moe = layer_seconds(model, rates, work, experts_read=read).total + extra
    dense = layer_seconds(model, rates, work, is_moe=False).total
    head = rates.memory_s(2 * model.vocab_params / 2)
    return (
        model.num_moe_layers * moe
        + model.num_dense_layers * dense
        + rates.memory_s(batch * _kv_bytes(model, context))
        + head
    )


def _kv_bytes(model: MoeModel, context: float) -> float:
    """Bytes of the KV cache that a step reads for one sequence."""
    attention = model.attention
    near = min(context, attention.window or context) * attention.window_layers
    far = context * (model.num_layers - attention.window_layers)
    return (near + far) * attention.kv_values * model.formats.kv_bytes


def decode_ms(model: MoeModel, rates: Rates, spread: Spread, *, context: float) -> dict[int, float]:
    """Milliseconds of a DWDP rank's decode step, by sequences in it."""
    return {
        batch: 1e3 * decode_seconds(model, rates, spread, batch=batch, context=context)
        for batch in constants.DECODE_BATCHES
    }


def expert_parallel_decode_ms(
    model: MoeModel, rates: Rates, num_ranks: int, *, context: float
) -> dict[int, float]:
    """Milliseconds of a decode step of expert parallelism, by sequences on each rank."""
    return {
        batch: 1e3
        * expert_parallel_decode_seconds(model, rates, num_ranks, batch=batch, context=context)
        for batch in constants.DECODE_BATCHES
    }
