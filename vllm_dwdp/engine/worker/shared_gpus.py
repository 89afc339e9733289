# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ranks of a group that share a GPU must each be told the size of its KV cache.

Otherwise vLLM would measure free memory while another rank takes some, and fail late.
"""

import json
from typing import NamedTuple

from vllm_dwdp.group.session import Gather
from vllm_dwdp.memory.limits import LimitError


class GpuUse(NamedTuple):
    """One rank's GPU, and the size of its KV cache if the user gave it.

    gpu: a name that no other GPU has; None for a CPU rank.
    """

    gpu: str | None
    kv_cache_bytes: int | None


def check_shared_gpus(own: GpuUse, gather: Gather, *, first_rank: int) -> None:
    """Raise LimitError, the same on every rank, if two share a GPU and one measures its KV cache.

    first_rank: the number in the job of the group's first rank.
    """
    uses = [GpuUse(*json.loads(data)) for data in gather("gpu", json.dumps(own).encode())]
    for gpu in sorted({use.gpu for use in uses if use.gpu is not None}):
        ranks = [rank for rank, use in enumerate(uses) if use.gpu == gpu]
        if len(ranks) > 1 and any(uses[rank].kv_cache_bytes is None for rank in ranks):
            names = " and ".join(str(first_rank + rank) for rank in ranks)
            raise LimitError(
                f"dwdp ranks {names} share {gpu}: each would measure free memory while the other "
                "takes some; give each --kv-cache-memory-bytes, or a GPU of its own."
            )
