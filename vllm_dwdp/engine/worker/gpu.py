# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank on a GPU."""

from vllm.config import set_current_vllm_config
from vllm.v1.worker.gpu_worker import Worker

from vllm_dwdp.engine.compat import known_arguments
from vllm_dwdp.engine.worker.base import DwdpWorker


class DwdpGPUWorker(DwdpWorker, Worker):
    """The GPU rank. vLLM profiles memory after `load_model`, so it sees blocks and slots."""

    @property
    def budget_bytes(self) -> int:
        return int(self.requested_memory)

    def run_largest_step(self) -> None:
        """Do vLLM's profiling run, without the attention kernel and on random tokens."""
        run = self.model_runner._dummy_run
        wanted = known_arguments(
            run, is_profile=True, skip_eplb=True, skip_attn=True, randomize_inputs=True
        )
        with set_current_vllm_config(self.vllm_config):
            run(self.model_runner.max_num_tokens, **wanted)
