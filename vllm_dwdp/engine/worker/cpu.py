# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank on CPU cores."""

import psutil
from vllm.config import set_current_vllm_config
from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_dwdp.engine.compat import known_arguments
from vllm_dwdp.engine.worker.base import DwdpWorker
from vllm_dwdp.memory.residency import process_proportional_bytes


class DwdpCPUWorker(DwdpWorker, CPUWorker):
    """The CPU rank. It counts its memory as PSS, because RSS counts peers' blocks in full, too."""

    _is_warm = False

    @property
    def budget_bytes(self) -> int:
        return int(self.requested_cpu_memory)

    def run_largest_step(self) -> None:
        """Do vLLM's profiling run, on random tokens. Before the first one vLLM may compile."""
        run = self.model_runner.profile_run
        with set_current_vllm_config(self.vllm_config):
            if not self._is_warm and self._should_warm_up_model():
                self.model_runner.warming_up_model()
            self._is_warm = True
            run(**known_arguments(run, randomize_inputs=True))

    def determine_available_memory(self) -> int:
        if self.cache_config.kv_cache_memory_bytes is not None:
            return super().determine_available_memory()
        if self._should_warm_up_model():
            self.model_runner.warming_up_model()
        left = self.requested_cpu_memory - process_proportional_bytes()
        if left <= 0:
            raise ValueError(
                f"this rank's share of memory, {self.requested_cpu_memory >> 20} MiB, is used up "
                "before the KV cache; raise --gpu-memory-utilization or set "
                "VLLM_CPU_KVCACHE_SPACE (GiB)."
            )
        if left > (available := psutil.virtual_memory().available):
            raise ValueError(
                f"this rank's KV cache would take {left >> 20} MiB, {available >> 20} MiB of "
                "memory are free; lower --gpu-memory-utilization or set VLLM_CPU_KVCACHE_SPACE."
            )
        return left
