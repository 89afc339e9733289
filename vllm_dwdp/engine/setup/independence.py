# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Makes engines independent of each other: no waves, no dummy batches, no collective over ranks.

vLLM runs data-parallel engines in lock-step when the model is MoE. The front-end's model config
therefore says `is_moe == False` until the executor starts, so that vLLM treats the ranks like those
of a dense model: each engine is independent of the others.

* With several engines under one front-end (internal or hybrid load balancing), this suffices.
* With one engine per front-end (external load balancing, `VLLM_DP_*`), vLLM refuses dense models.
  The front-end then becomes a job of one engine, which keeps its number in the dwdp job.

docs/data-parallel-fields.md says which values the data-parallel fields have in each process, and
why.
"""

from typing import Any

from vllm.config import ModelConfig

from vllm_dwdp.engine.setup.settings import Settings, job_rank


class IndependentModelConfig(ModelConfig):
    """A ModelConfig whose engines vLLM leaves independent. Its class pickles by reference."""

    @property
    def is_moe(self) -> bool:
        return False


def hide_moe(vllm_config: Any) -> None:
    """Make vLLM treat the model as dense. Called in the front-end, before an engine is spawned."""
    vllm_config.model_config.__class__ = IndependentModelConfig


def show_moe(vllm_config: Any) -> None:
    """Undo `hide_moe`, in the engine's process, before the model is built."""
    if isinstance(vllm_config.model_config, IndependentModelConfig):
        vllm_config.model_config.__class__ = ModelConfig
    vllm_config.parallel_config.is_moe_model = vllm_config.model_config.is_moe


def collapse_data_parallel(parallel_config: Any) -> None:
    """Make this front-end a job of one engine, which is numbered by its rank in the dwdp job.

    If `data_parallel_rank_local` is set, vLLM launches and addresses a front-end's only engine by
    `data_parallel_rank`. Where API servers are processes of their own, vLLM launches the engine in
    another way, which accepts only the number 0. The engine then learns its rank in `restore_rank`,
    and this front-end's metrics call it engine 0.
    """
    rank, local_rank = parallel_config.data_parallel_rank, parallel_config.data_parallel_rank_local
    parallel_config.reconfigure_for_independent_dp_rank()
    parallel_config.data_parallel_external_lb = False
    if _has_api_servers_beside(parallel_config):
        rank, local_rank = 0, None
    else:
        local_rank = local_rank or 0
    parallel_config.data_parallel_index = parallel_config.data_parallel_rank = rank
    parallel_config.data_parallel_rank_local = local_rank


def restore_rank(vllm_config: Any, settings: Settings) -> None:
    """Give a collapsed rank the fields of a rank of its job again.

    Called in the engine process, before vLLM makes workers, schedulers and KV connectors, which
    derive seeds, ports and names from these fields.
    """
    if settings.job_rank is None or settings.job_size == 1:
        return
    parallel_config, rank = vllm_config.parallel_config, job_rank(vllm_config, settings)
    parallel_config.data_parallel_index = rank
    parallel_config.data_parallel_rank_local = settings.local_rank or 0
    parallel_config.data_parallel_external_lb = settings.is_external
    transfer = vllm_config.kv_transfer_config
    suffix = f"_dp{rank}"
    if transfer is not None and not transfer.engine_id.endswith(suffix):
        transfer.engine_id += suffix  # as vLLM does for a job of several ranks


def _has_api_servers_beside(parallel_config: Any) -> bool:
    """Whether API servers run in processes beside the one that launches the engine."""
    return (parallel_config._api_process_count, parallel_config._api_process_rank) != (1, 0)
