# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The paper's roofline: two ratios at peak rates, for ranks that all do the same.

Computation, copies and all-to-alls run at the peaks of the hardware, all of attention in BF16.
T_DWDP = max(T_compute, T_prefetch), T_DEP = T_compute + T_all2all.
"""

from dataclasses import dataclass

from vllm_dwdp.planning.hardware import Hardware
from vllm_dwdp.planning.model import MoeModel
from vllm_dwdp.planning.other_steps import all_to_all_seconds
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.roofline import layer_seconds
from vllm_dwdp.planning.spread import Spread
from vllm_dwdp.planning.workload import Workload


@dataclass(frozen=True)
class PeakRoofline:
    """window_s, fetch_s: seconds that a MoE layer computes, and that its copy takes, at peak.

    window_over_fetch: infinite where nothing is fetched. dep_over_dwdp: above 1, DWDP is faster
    than expert parallelism.
    """

    window_s: float
    fetch_s: float
    window_over_fetch: float
    dep_over_dwdp: float


def peak_roofline(
    model: MoeModel, hardware: Hardware, work: Workload, spread: Spread
) -> PeakRoofline:
    """For one MoE layer and the tokens of `work` on each rank."""
    rates = Rates.peak(hardware, spread.num_ranks)
    window = layer_seconds(model, rates, work, experts_read=model.num_experts).total
    fetch = rates.copy_s(spread.fetch_bytes)
    share = model.num_experts / spread.num_ranks
    alone = layer_seconds(model, rates, work, experts_read=share).total
    dep = alone + all_to_all_seconds(model, rates, work.tokens, spread.num_ranks)
    ratio = window / fetch if fetch else float("inf")
    return PeakRoofline(window, fetch, ratio, dep / max(window, fetch))
