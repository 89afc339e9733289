# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank on a GPU."""

from vllm.v1.worker.gpu_worker import Worker

from vllm_dwdp.engine.compat import known_arguments
from vllm_dwdp.engine.worker import DwdpWorker


class DwdpGPUWorker(DwdpWorker, Worker):
    """vLLM profiles free memory after `load_model`: blocks, slots and views are counted by then."""

    @property
    def budget_bytes(self) -> int:
        return int(self.requested_memory)

    def run_largest_step(self) -> None:
        """With attention, which vLLM's profiling run leaves out, and on random tokens."""
        run = self.model_runner._dummy_run
        wanted = known_arguments(
            run, is_profile=True, skip_eplb=True, force_attention=True, randomize_inputs=True
        )
        run(self.model_runner.max_num_tokens, **wanted)
