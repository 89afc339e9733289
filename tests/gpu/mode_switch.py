# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A worker extension that changes how a rank fetches between two requests, without a new start."""

from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.policy import Policy

EXTENSION = "mode_switch.ModeSwitch"
MIXED = "mixed"
FIRST_PREFETCH = 3
"""Tokens of the smallest step that prefetches in the mixed mode: decodes of one request don't."""

POLICIES = {mode.value: Policy.always(mode) for mode in FetchMode} | {
    MIXED: Policy((0, FIRST_PREFETCH), (FetchMode.DIRECT, FetchMode.PREFETCH))
}


class MemoryUse:
    """Mixed into any worker on a GPU by `worker_extension_cls`."""

    def gpu_bytes(self) -> int:
        """What is in use of the GPU, by all processes."""
        import torch

        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return int(total - free)


class ModeSwitch:
    """Mixed into the worker by `worker_extension_cls`. The rank must have started 'selective'."""

    def switch_mode(self, mode: str) -> None:
        scheduler = self._sharing._fetching._scheduler
        scheduler.stop()
        scheduler.policy = POLICIES[mode]
