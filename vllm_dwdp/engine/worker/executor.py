# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank's executor: vLLM's multiprocess executor, which gives dwdp's worker its cores or GPU."""

from collections.abc import Callable
from typing import Any, NoReturn

from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.admission.gate import min_tokens_of_step
from vllm_dwdp.engine.admission.scheduler import admitting
from vllm_dwdp.engine.metrics.report import add_report
from vllm_dwdp.engine.moe.read_only import refuse_call
from vllm_dwdp.engine.setup import cpu_host
from vllm_dwdp.engine.setup.independence import restore_rank, show_moe
from vllm_dwdp.engine.setup.last_words import EngineFailure
from vllm_dwdp.engine.setup.settings import Settings, job_rank, user_config
from vllm_dwdp.engine.worker.admin_calls import refuse_before_pausing

logger = init_logger("vllm.dwdp")


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
        restore_rank(self.vllm_config, settings)
        refuse_before_pausing(DwdpExecutor)
        add_report()
        self._job_rank = job_rank(self.vllm_config, settings)
        EngineFailure.hear(self.parallel_config, self._job_rank)
        self._check_node(settings)
        if self.vllm_config.device_config.device_type == "cpu":
            self._start_on_cores(settings)
        else:
            self._start_on_gpu(settings)

    def compile_or_warm_up_model(self) -> Any:
        """Warm up, then choose the scheduler, which vLLM makes after this."""
        result = super().compile_or_warm_up_model()
        self._choose_scheduler()
        return result

    def register_failure_callback(self, callback: Callable[[], None]) -> None:
        """Have the log name this rank when its worker dies: vLLM's lines number no rank."""

        def name_rank_and_fail() -> None:
            logger.error(
                "dwdp rank %d ends, because its worker has ended; look for the worker's last lines,"
                " and for the kernel's out-of-memory killer (dmesg).",
                self._job_rank,
            )
            callback()

        super().register_failure_callback(name_rank_and_fail)

    def sleep(self, level: int = 1) -> NoReturn:
        refuse_call("sleep")

    def discard(self, tags: tuple[str, ...]) -> NoReturn:
        """Refused here, because vLLM notes the tags as asleep even if the worker refuses."""
        refuse_call("discard")

    def _choose_scheduler(self) -> None:
        config = user_config(self.vllm_config)
        if config.min_tokens_per_step is None:
            return
        (stats,) = self.collective_rpc("dwdp_stats")
        min_tokens = min_tokens_of_step(config, stats["break_even_tokens"])
        if min_tokens is None:
            logger.info("Prompts start at once, since no step of this rank prefetches.")
            return
        scheduler_config = self.vllm_config.scheduler_config
        stock = scheduler_config.get_scheduler_cls()
        scheduler_config.scheduler_cls = admitting(stock, config, min_tokens)
        logger.info(
            "A step of prompts starts with %d tokens, or when prompts have waited %.0f ms.",
            min_tokens,
            config.max_wait_s * 1e3,
        )

    def _check_node(self, settings: Settings) -> None:
        """Raise ConfigError if vLLM placed this rank elsewhere than was worked out beforehand."""
        if not settings.ranks_of_nodes:
            return
        rank, placed = self._job_rank, self.parallel_config
        if (expected := settings.on_node(rank).rank) != placed.data_parallel_rank_local:
            raise ConfigError(
                f"expected dwdp rank {rank} as number {expected} of its Ray node, got number "
                f"{placed.data_parallel_rank_local}: what the nodes have free has changed since "
                "the command began; start it again."
            )

    def _start_on_cores(self, settings: Settings) -> None:
        rank, num_ranks, command = settings.on_node(self._job_rank)
        cpu_host.share_memory(self.vllm_config, num_ranks, rank, command)
        self.parallel_config.worker_cls = "vllm_dwdp.engine.worker.cpu.DwdpCPUWorker"
        # vLLM 0.33 takes a CPU rank's number for that of a memory node, which may not exist.
        self.parallel_config.assigned_physical_gpu_ids = None
        with cpu_host.own_cores(self.parallel_config, rank, num_ranks, command):
            super()._init_executor()

    def _start_on_gpu(self, settings: Settings) -> None:
        logger.warning(
            "dwdp on CUDA is experimental: it was tested over a stand-in for the driver and on one "
            "GPU, not between GPUs. Compare outputs with vLLM's own before you rely on it."
        )
        self.parallel_config.worker_cls = "vllm_dwdp.engine.worker.gpu.DwdpGPUWorker"
        if settings.job_rank is not None and settings.local_rank is None:
            self.parallel_config.assigned_physical_gpu_ids = [self._gpu_in_turn(settings.job_rank)]
        super()._init_executor()

    def _gpu_in_turn(self, rank: int) -> int:
        """The GPU of a server that was told its rank in the job, but not its rank on this host."""
        gpus = self.parallel_config.assigned_physical_gpu_ids or [
            current_platform.visible_device_id_to_physical_device_id(device)
            for device in range(current_platform.device_count())
        ]
        return int(gpus[rank % len(gpus)])
