# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Starts the ranks of an offline job as children of the process that builds the LLM."""

import contextlib
from collections.abc import Iterator

from vllm_dwdp.engine.setup.local_address import reserved_port
from vllm_dwdp.engine.setup.settings import LOOPBACK
from vllm_dwdp.offline.pickled_options import PickledOptions
from vllm_dwdp.offline.rank_child import RankChild


class LocalRanks:
    """All ranks of a job on this host."""

    def __init__(self, job_size: int, options: PickledOptions) -> None:
        self._job_size = job_size
        self._options = options

    @contextlib.contextmanager
    def starting(self) -> Iterator[Iterator[RankChild]]:
        """Yields the ranks, which start as they are taken, and meet within this context."""
        with reserved_port() as port:
            yield (
                RankChild.start(
                    rank, rank_environment(rank, rank, self._job_size, port), self._options
                )
                for rank in range(self._job_size)
            )


def rank_environment(rank: int, local_rank: int, job_size: int, port: int) -> dict[str, str]:
    """vLLM's variables that give a rank its place in the job, empty for a job of one rank.

    local_rank: its number on its node. port: where the ranks of its node meet.
    """
    if job_size == 1:
        return {}
    return {
        "VLLM_DP_RANK": str(rank),
        "VLLM_DP_RANK_LOCAL": str(local_rank),
        "VLLM_DP_SIZE": str(job_size),
        "VLLM_DP_MASTER_IP": LOOPBACK,
        "VLLM_DP_MASTER_PORT": str(port),
    }
