# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Turns a vLLM config that selects dwdp into one of independent ranks. Acts once.

Runs inside `Executor.get_class`: in `VllmConfig.__post_init__`, again in the front-end, and
again in every engine process after load. It keeps its results in `additional_config`, where later
calls find them and do nothing.
"""

from typing import Any

from vllm_dwdp.config import DwdpConfig
from vllm_dwdp.engine.setup import last_words
from vllm_dwdp.engine.setup.checks import check_config
from vllm_dwdp.engine.setup.cpu_host import number_engines
from vllm_dwdp.engine.setup.every_engine import answer_for_all
from vllm_dwdp.engine.setup.front_end import follow_front_end
from vllm_dwdp.engine.setup.independence import collapse_data_parallel, hide_moe
from vllm_dwdp.engine.setup.job_checks import dwdp_size
from vllm_dwdp.engine.setup.ray_placement import planned_ranks
from vllm_dwdp.engine.setup.settings import (
    Settings,
    command_ranks,
    given_ranks_of_nodes,
    is_offline,
    is_spread,
    user_config,
)
from vllm_dwdp.engine.setup.start_limit import outlast_progress
from vllm_dwdp.group.meet import job_board


def configure(vllm_config: Any) -> None:
    """Check the config, resolve the job's shape, make its engines independent.

    Raises ConfigError with what to change.
    """
    answer_for_all()
    if Settings.load(vllm_config) is not None:
        return
    with last_words.of_refused_options():
        config = user_config(vllm_config)
        check_config(vllm_config, config)
    last_words.print_at_exit()
    if (size := dwdp_size(vllm_config, config)) > 1:
        outlast_progress(vllm_config, config)
    job_board.put_up(vllm_config.parallel_config)
    parallel = vllm_config.parallel_config
    is_one_rank = is_offline(parallel) or parallel.data_parallel_external_lb
    Settings(
        job_size=parallel.data_parallel_size,
        dwdp_size=size,
        job_rank=parallel.data_parallel_rank if is_one_rank else None,
        is_spread=is_spread(parallel),
        local_rank=parallel.data_parallel_rank_local,
        is_external=parallel.data_parallel_external_lb,
        command_ranks=command_ranks(parallel),
        ranks_of_nodes=_ranks_of_nodes(vllm_config, config),
    ).store(vllm_config)
    if vllm_config.device_config.device_type == "cpu":
        number_engines(parallel)
    if parallel.data_parallel_size > 1:
        hide_moe(vllm_config)
    if is_one_rank:
        collapse_data_parallel(parallel)
    follow_front_end(parallel)


def _ranks_of_nodes(vllm_config: Any, config: DwdpConfig) -> tuple[int, ...]:
    if is_offline(vllm_config.parallel_config):
        return given_ranks_of_nodes()
    return planned_ranks(vllm_config, config)
