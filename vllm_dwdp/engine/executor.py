# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The executor: vLLM's multiprocess executor with a dwdp worker and a host made ready for it."""

from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine import cpu_host
from vllm_dwdp.engine.independence import show_moe
from vllm_dwdp.engine.settings import Settings, job_rank


class DwdpExecutor(MultiprocExecutor):
    """One rank of a dwdp job. Lives in the engine process; its one worker shares the experts."""

    supports_pp: bool = False

    def _init_executor(self) -> None:
        settings = Settings.load(self.vllm_config)
        if settings is None:
            raise ConfigError(
                "dwdp was selected but its plugin never configured this engine; "
                "if VLLM_PLUGINS is set, it must name 'dwdp'."
            )
        show_moe(self.vllm_config)
        rank = job_rank(self.vllm_config, settings)
        cpu_host.share_memory(self.vllm_config, settings.job_size)
        self.parallel_config.worker_cls = "vllm_dwdp.engine.worker.DwdpCPUWorker"
        # vLLM 0.33 takes a CPU rank's number for a memory node, of which there may be fewer.
        self.parallel_config.assigned_physical_gpu_ids = None
        with cpu_host.own_cores(self.parallel_config, rank, settings.job_size):
            super()._init_executor()
