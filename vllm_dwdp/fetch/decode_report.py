# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What decode steps read of peers' memory, logged at start, with a warning where it takes long.

A decode step has a token for each sequence. Even a few of them choose most experts of a layer, and
a rank reads those that it lacks over the link, where expert parallelism would read its own.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vllm_dwdp.device.bandwidth import Bandwidths
from vllm_dwdp.fetch.cost_model import share_chosen

logger = logging.getLogger("vllm.dwdp")
MAX_LINK_S = 0.030
MAX_SLOWDOWN = 2.0
"""Warn of a step that takes longer than MAX_LINK_S over the link, and longer than MAX_SLOWDOWN
times what own memory would take."""


class DecodeStep(NamedTuple):
    """A step of so many tokens: what it reads of peers, and how long that takes."""

    num_tokens: int
    num_bytes: float
    link_s: float
    own_s: float

    @property
    def is_slow(self) -> bool:
        return self.link_s > max(MAX_LINK_S, MAX_SLOWDOWN * self.own_s)

    def __str__(self) -> str:
        unit = "token" if self.num_tokens == 1 else "tokens"
        return (
            f"{self.num_tokens} {unit} {self.num_bytes / 2**20:.1f} MiB in "
            f"{self.link_s * 1e3:.2f} ms ({self.own_s * 1e3:.2f} ms)"
        )


@dataclass(frozen=True)
class DecodeModel:
    """missing_bytes: bytes of the experts that a rank lacks, over all layers."""

    missing_bytes: int
    num_experts: int
    top_k: int
    bandwidths: Bandwidths

    def step(self, num_tokens: int) -> DecodeStep:
        num_bytes = self.missing_bytes * share_chosen(num_tokens, self.top_k, self.num_experts)
        return DecodeStep(
            num_tokens,
            num_bytes,
            link_s=num_bytes / self.bandwidths.peers,
            own_s=num_bytes / self.bandwidths.own,
        )


def report_decode(model: DecodeModel, sizes: Sequence[int], *, has_kv_transfer: bool) -> None:
    """Log what steps of some sizes read; warn if the largest is slow and this engine decodes.

    has_kv_transfer: whether a KV transfer is configured; a server with one may only prefill.
    """
    steps = [model.step(size) for size in _to_show(sizes)]
    logger.info(
        "Decode steps read experts that this rank lacks at %.1f GB/s (own memory: %.1f GB/s): %s",
        model.bandwidths.peers / 1e9,
        model.bandwidths.own / 1e9,
        "; ".join(map(str, steps)),
    )
    if steps[-1].is_slow and not has_kv_transfer:
        logger.warning(
            "A decode step of %d tokens reads %.1f GiB of experts over the link, which takes %.0f "
            "ms where own memory would take %.0f ms. Let this server prefill only "
            "(--kv-transfer-config), lower --max-num-seqs, or decode with tensor or expert "
            "parallelism.",
            *(steps[-1].num_tokens, steps[-1].num_bytes / 2**30),
            *(steps[-1].link_s * 1e3, steps[-1].own_s * 1e3),
        )


def _to_show(sizes: Sequence[int]) -> list[int]:
    """Those sizes that are powers of two, and the largest size; vLLM captures dozens of sizes."""
    return sorted(n for n in set(sizes) if n == max(sizes) or n & (n - 1) == 0)
