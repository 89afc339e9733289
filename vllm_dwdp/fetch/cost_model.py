# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a step costs in each fetch mode, from measured bandwidths and compute time.

The model is of one MoE layer and the attention beside it, in steady state. Tokens choose experts
evenly, which makes the experts that a step needs as many as they can be.
"""

from dataclasses import dataclass
from typing import NamedTuple

from vllm_dwdp.config import FetchMode
from vllm_dwdp.device.bandwidth import Bandwidths


class Seconds(NamedTuple):
    """Of one layer: `compute`, and what fetching adds to it in each mode."""

    compute: float
    direct: float
    selective: float
    prefetch: float


@dataclass(frozen=True)
class CostModel:
    """missing_bytes: of the experts of one layer that a rank lacks.

    compute_s_per_token: of one layer.
    direct_extra_s_per_token: how much longer a token takes in the largest step when it reads peers'
        memory in place; 0: not measured. Kernels read a weight once for each block of tokens.
    """

    missing_bytes: int
    num_experts: int
    top_k: int
    bandwidths: Bandwidths
    compute_s_per_token: float
    direct_extra_s_per_token: float = 0.0

    def seconds(self, num_tokens: int) -> Seconds:
        compute = num_tokens * self.compute_s_per_token
        chosen = self.missing_bytes * share_chosen(num_tokens, self.top_k, self.num_experts)
        selective = chosen / self.bandwidths.peers
        read_once = selective - chosen / self.bandwidths.own
        direct = max(0.0, read_once, num_tokens * self.direct_extra_s_per_token)
        return Seconds(compute, direct, selective, max(0.0, self._copy_all - compute))

    def describe(self) -> str:
        """The figures, for the log."""
        extra_us = self.direct_extra_s_per_token * 1e6
        measured = f"; read in place, the largest step takes {extra_us:.2f} us longer for a token"
        return (
            f"a layer computes {self.compute_s_per_token * 1e6:.2f} us for a token and lacks "
            f"{self.missing_bytes / 2**20:.1f} MiB of experts, which take "
            f"{self._copy_all * 1e3:.2f} ms to copy at {self.bandwidths.copies / 1e9:.1f} GB/s; a "
            f"kernel reads them at {self.bandwidths.peers / 1e9:.1f} GB/s, own memory at "
            f"{self.bandwidths.own / 1e9:.1f} GB/s{measured if extra_us else ''}"
        )

    @property
    def break_even_tokens(self) -> int:
        """The smallest step whose compute hides the copy of all that is missing."""
        return -int(-self._copy_all // self.compute_s_per_token)

    @property
    def _copy_all(self) -> float:
        """Seconds."""
        return self.missing_bytes / self.bandwidths.copies


def share_chosen(num_tokens: int, top_k: int, num_experts: int) -> float:
    """Expected share of the experts that at least one token chooses, if all are equally likely."""
    return 1.0 - (1.0 - top_k / num_experts) ** num_tokens


def best_mode(seconds: Seconds, *, may_prefetch: bool, min_gain: float) -> FetchMode:
    """The cheapest mode; another than direct must save `min_gain` of the layer's time."""
    costs = {FetchMode.DIRECT: seconds.direct, FetchMode.SELECTIVE: seconds.selective}
    if may_prefetch:
        costs[FetchMode.PREFETCH] = seconds.prefetch
    best = min(costs, key=lambda mode: costs[mode])
    saved = seconds.direct - costs[best]
    return best if saved > min_gain * (seconds.compute + seconds.direct) else FetchMode.DIRECT
