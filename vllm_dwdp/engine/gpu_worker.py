# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank on a GPU."""

import torch
from vllm.v1.worker.gpu_worker import Worker

from vllm_dwdp.engine.settings import Settings
from vllm_dwdp.engine.worker import DwdpWorker


class DwdpGPUWorker(DwdpWorker, Worker):
    """vLLM profiles free memory after `load_model`: blocks, slots and views are counted by then."""

    def init_device(self) -> None:
        """vLLM picks the GPU by the local rank, which a job of one engine has lost."""
        settings = Settings.load(self.vllm_config)
        if settings is not None and self.parallel_config.data_parallel_rank_local is None:
            gpu = settings.gpu(torch.accelerator.device_count())
            self.parallel_config.data_parallel_rank_local = gpu
        super().init_device()
