# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The processes of a server end with `vllm serve`, however it ended.

    vllm serve (or its supervisor)  <-watch-  API servers, engines  <-watch-  workers

vLLM's engines, and workers that still load, would wait for messages that never come.
"""

import multiprocessing
from typing import Any

from vllm.config import ParallelConfig

from vllm_dwdp.engine.parent_watch import end_with_parent, end_workers

API_SERVERS = ("ApiServer_", "APIServer_")
"""How vLLM names the processes that are front-ends and have a parent of vLLM's."""


class FollowingParallelConfig(ParallelConfig):
    """A ParallelConfig whose engines end with their front-end. Pickles by reference."""

    def reconfigure_for_independent_dp_rank(self) -> None:
        """vLLM calls this first of all in an engine's process: before it waits for anything."""
        super().reconfigure_for_independent_dp_rank()
        end_with_parent(end_workers)


def follow_front_end(parallel_config: Any) -> None:
    """Have engines end with the front-end, which is this process, and it with its supervisor."""
    parallel_config.__class__ = FollowingParallelConfig
    if multiprocessing.current_process().name.startswith(API_SERVERS):
        end_with_parent()
