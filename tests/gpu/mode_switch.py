# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A worker extension that changes a rank's fetch mode between requests, without a restart."""

from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.policy import Policy

EXTENSION = "mode_switch.ModeSwitch"
MIXED = "mixed"
FIRST_PREFETCH = 3
"""Tokens of the smallest step that prefetches in mixed mode; a decode of one request has fewer."""

POLICIES = {mode.value: Policy.always(mode) for mode in FetchMode} | {
    MIXED: Policy((0, FIRST_PREFETCH), (FetchMode.DIRECT, FetchMode.PREFETCH))
}


class MemoryUse:
    """vLLM mixes this class into any worker on a GPU, with `worker_extension_cls`."""

    def gpu_bytes(self) -> int:
        """Bytes of the GPU's memory that all processes use together."""
        import torch

        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return int(total - free)


class ModeSwitch:
    """vLLM mixes this class into a rank's worker. The rank must have started with 'selective'."""

    def switch_mode(self, mode: str) -> None:
        scheduler = self._sharing._fetching._scheduler
        scheduler.stop()
        scheduler.policy = POLICIES[mode]
