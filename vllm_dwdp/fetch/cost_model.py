# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a step costs in each fetch mode, from measured bandwidths and compute time.

The model covers one MoE layer and its attention, in steady state. It assumes that tokens choose all
experts equally often, so that a step needs as many experts as it can.
"""

from dataclasses import dataclass
from typing import NamedTuple

from vllm_dwdp.config import FetchMode
from vllm_dwdp.device.bandwidth import Bandwidths


class Seconds(NamedTuple):
    """Seconds of one layer: `compute`, and what each fetch mode adds to it."""

    compute: float
    direct: float
    selective: float
    prefetch: float


@dataclass(frozen=True)
class CostModel:
    """The figures by which the modes of one layer are compared.

    missing_bytes: bytes of the layer's experts that the rank lacks.
    compute_s_per_token: seconds that the layer computes for a token.
    direct_extra_s_per_token: additional seconds per token if the largest step reads peers' memory
        in place; 0: not measured. Bandwidths alone don't tell it, because kernels read a weight
        once for each block of tokens.
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
        """Seconds that a copy of all missing bytes takes."""
        return self.missing_bytes / self.bandwidths.copies


def share_chosen(num_tokens: int, top_k: int, num_experts: int) -> float:
    """Expected share of the experts that at least one token chooses, if all are equally likely."""
    return 1.0 - (1.0 - top_k / num_experts) ** num_tokens


def best_mode(
    seconds: Seconds, *, may_select: bool, may_prefetch: bool, min_gain: float
) -> FetchMode:
    """The cheapest mode; one that copies must save more than `min_gain` of the layer's time.

    may_select, may_prefetch: whether the step can run in mode 'selective', and in 'prefetch'.
    """
    costs = {FetchMode.DIRECT: seconds.direct}
    if may_select:
        costs[FetchMode.SELECTIVE] = seconds.selective
    if may_prefetch:
        costs[FetchMode.PREFETCH] = seconds.prefetch
    best = min(costs, key=lambda mode: costs[mode])
    saved = seconds.direct - costs[best]
    return best if saved > min_gain * (seconds.compute + seconds.direct) else FetchMode.DIRECT
