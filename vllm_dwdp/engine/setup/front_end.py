# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ends the processes of a server when `vllm serve` ends, even if it was killed.

    vllm serve (or its supervisor)  <-watch-  API servers, engines  <-watch-  workers

Without this, vLLM's engines, and workers that still load, would wait for messages that never come.
"""

import multiprocessing
from typing import Any

from vllm.config import ParallelConfig

from vllm_dwdp.engine.parent_watch import end_with_parent, end_workers

API_SERVERS = ("ApiServer_", "APIServer_")
"""How the names of front-end processes begin that another process of vLLM started."""


class FollowingParallelConfig(ParallelConfig):
    """A ParallelConfig whose engines end with their front-end. Its class pickles by reference."""

    def reconfigure_for_independent_dp_rank(self) -> None:
        """Start the watch here: vLLM calls this in an engine's process before it waits at all."""
        super().reconfigure_for_independent_dp_rank()
        end_with_parent(end_workers)


def follow_front_end(parallel_config: Any) -> None:
    """Have engines end with this process, their front-end, and this process with its parent."""
    parallel_config.__class__ = FollowingParallelConfig
    if multiprocessing.current_process().name.startswith(API_SERVERS):
        end_with_parent()
