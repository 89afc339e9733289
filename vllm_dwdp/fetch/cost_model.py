# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a step costs in each fetch mode, from measured bandwidths and compute time.

The model is of one MoE layer and the attention beside it, in steady state. Tokens choose experts
evenly, which makes the experts that a step needs as many as they can be.
"""

from dataclasses import dataclass
from typing import NamedTuple

from vllm_dwdp.config import FetchMode


class Seconds(NamedTuple):
    """Of one layer: `compute`, and what fetching adds to it in each mode."""

    compute: float
    direct: float
    selective: float
    prefetch: float


@dataclass(frozen=True)
class CostModel:
    """missing_bytes: of the experts of one layer that a rank lacks.

    link_bytes_per_s: copies out of peers' memory; local_bytes_per_s: the same out of own memory.
    compute_s_per_token: of one layer.
    """

    missing_bytes: int
    num_experts: int
    top_k: int
    link_bytes_per_s: float
    local_bytes_per_s: float
    compute_s_per_token: float

    def seconds(self, num_tokens: int) -> Seconds:
        compute = num_tokens * self.compute_s_per_token
        chosen = self.missing_bytes * self._share_chosen(num_tokens)
        direct = max(0.0, chosen / self.link_bytes_per_s - chosen / self.local_bytes_per_s)
        copy_all = self.missing_bytes / self.link_bytes_per_s
        return Seconds(
            compute, direct, chosen / self.link_bytes_per_s, max(0.0, copy_all - compute)
        )

    def describe(self) -> str:
        """The figures, for the log."""
        return (
            f"a layer computes {self.compute_s_per_token * 1e6:.2f} us for a token and lacks "
            f"{self.missing_bytes / 2**20:.1f} MiB of experts, which take "
            f"{self.missing_bytes / self.link_bytes_per_s * 1e3:.2f} ms to copy at "
            f"{self.link_bytes_per_s / 1e9:.1f} GB/s"
        )

    @property
    def break_even_tokens(self) -> int:
        """The smallest step whose compute hides the copy of all that is missing."""
        copy_all = self.missing_bytes / self.link_bytes_per_s
        return -int(-copy_all // self.compute_s_per_token)

    def _share_chosen(self, num_tokens: int) -> float:
        """Expected share of the experts that at least one token chooses."""
        return 1.0 - (1.0 - self.top_k / self.num_experts) ** num_tokens


def best_mode(seconds: Seconds, *, may_prefetch: bool, min_gain: float) -> FetchMode:
    """The cheapest mode; another than direct must save `min_gain` of the layer's time."""
    costs = {FetchMode.DIRECT: seconds.direct, FetchMode.SELECTIVE: seconds.selective}
    if may_prefetch:
        costs[FetchMode.PREFETCH] = seconds.prefetch
    best = min(costs, key=lambda mode: costs[mode])
    saved = seconds.direct - costs[best]
    return best if saved > min_gain * (seconds.compute + seconds.direct) else FetchMode.DIRECT
