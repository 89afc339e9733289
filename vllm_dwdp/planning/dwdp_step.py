# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Seconds of one step with DWDP: computation with copies under it.

    compute  ..attention, projections (slower under the copy).. experts  ..attention ...
    copies   ====== layer l + 1 ======                                   ====== l + 2 ===

* A layer takes at least as long as its computation, and as its copy. Copies differ in length, since
  they meet different numbers of rivals. So some layers wait even if computation is longer on
  average.
* Kernels are slower while a copy runs: it takes memory bandwidth and power.
* A copy is slower while others read the same source. They do so in the part of their step in which
  they copy, so a longer step means less contention.
"""

import dataclasses
from dataclasses import dataclass

from vllm_dwdp.planning import constants
from vllm_dwdp.planning.contention import draw_copies, mean_rivals
from vllm_dwdp.planning.implementation import Implementation
from vllm_dwdp.planning.late_copies import mean_layer_seconds
from vllm_dwdp.planning.model import MoeModel
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.roofline import LayerSeconds, layer_seconds, share_chosen
from vllm_dwdp.planning.spread import Spread
from vllm_dwdp.planning.workload import Workload

_ROUNDS = 100
"""Rounds until duration of copies and of a layer, which depend on each other, no longer change."""


@dataclass(frozen=True)
class DwdpLayer:
    """Seconds of one MoE layer: its computation, slowed by the copy; the copy; both together.

    copies_all: whether all missing experts are copied, instead of the chosen ones after routing.
    """

    compute: float
    copy: float
    total: float
    copies_all: bool = True

    @property
    def exposed(self) -> float:
        """Seconds that the computation waits for experts."""
        return self.total - self.compute


def dwdp_step(
    model: MoeModel, rates: Rates, work: Workload, spread: Spread, how: Implementation
) -> float:
    """Seconds of one forward pass of one rank."""
    dense = layer_seconds(model, rates, work, is_moe=False).total
    moe = dwdp_layer(model, rates, work, spread, how).total
    return model.num_moe_layers * moe + model.num_dense_layers * dense


def dwdp_layer(
    model: MoeModel, rates: Rates, work: Workload, spread: Spread, how: Implementation
) -> DwdpLayer:
    """One MoE layer in steady state: with all missing experts, or with the chosen ones only."""
    layer = layer_seconds(model, rates, work)
    if rates.reads_in_place or not spread.missing:
        return DwdpLayer(layer.total, 0.0, layer.total)
    alone = rates.copy_s(spread.fetch_bytes)
    chosen = alone * share_chosen(work.tokens, model.top_k, model.num_experts)
    # fetch.cost_model compares in the same way, and knows no rivals either.
    if how.may_skip and layer.total + chosen < max(layer.total, alone):
        return DwdpLayer(layer.total, chosen, layer.total + chosen, copies_all=False)
    prefetch = prefetching_layer(layer, rates, spread, how)
    if _rivals(rates, spread, how):
        return _with_late_copies(prefetch, layer, rates, spread)
    return prefetch


def prefetching_layer(
    layer: LayerSeconds, rates: Rates, spread: Spread, how: Implementation
) -> DwdpLayer:
    """A MoE layer, which takes `layer` without copies, beside a copy of all missing experts.

    All copies are taken to meet the mean number of rivals.
    """
    alone = rates.copy_s(spread.fetch_bytes)
    merge = _merge_seconds(rates, spread) if how.merges_experts else 0.0
    rivals = _rivals(rates, spread, how)
    copy, total = alone, layer.total
    for _ in range(_ROUNDS):
        copy = (copy + alone * (1 + rivals * min(1.0, copy / total))) / 2
        total = max(_slowed(layer, copy) + merge, copy)
    return DwdpLayer(_slowed(layer, copy) + merge, copy, total)


def _with_late_copies(
    steady: DwdpLayer, layer: LayerSeconds, rates: Rates, spread: Spread
) -> DwdpLayer:
    """`steady` if its copies differ in length, as they do where they meet rivals."""
    alone = rates.copy_s(spread.fetch_bytes)
    copies = draw_copies(alone, spread.num_ranks, steady.copy / steady.total)
    drawn = mean_layer_seconds(steady.compute - layer.experts, layer.experts, copies)
    # The mean of what was drawn may be a little below the true one.
    return dataclasses.replace(steady, total=max(steady.total, drawn))


def _rivals(rates: Rates, spread: Spread, how: Implementation) -> float:
    """Other readers of a source while all copy. In a mesh each pair of ranks has its own link."""
    if how.reads_peers_at_once or rates.hardware.peer_link is not None:
        return 0.0
    return mean_rivals(spread.num_ranks)


def _slowed(layer: LayerSeconds, copy: float) -> float:
    """Seconds of computation with `copy` seconds of copying under the parts before the experts."""
    covered = min(1.0, copy / layer.before_experts)
    return (
        layer.attention * (1 + constants.ATTENTION_SLOWDOWN * covered)
        + layer.linear * (1 + constants.LINEAR_SLOWDOWN * covered)
        + layer.experts
    )


def _merge_seconds(rates: Rates, spread: Spread) -> float:
    """Seconds to copy the own experts of a layer to another place in own memory."""
    return rates.memory_s(2 * spread.owned * spread.expert_bytes)
