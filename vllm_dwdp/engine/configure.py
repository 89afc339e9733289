# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Turns a vLLM config that selects dwdp into one of independent ranks. Acts once.

Runs inside `Executor.get_class`: in `VllmConfig.__post_init__`, again in the front-end, and
again in every engine process after load. What it resolved is kept in `additional_config`, which
is how later calls know that there is nothing left to do.
"""

from typing import Any

from vllm_dwdp.engine.checks import check_config, dwdp_size
from vllm_dwdp.engine.independence import collapse_data_parallel, hide_moe
from vllm_dwdp.engine.ray_placement import place_engines_by_ray
from vllm_dwdp.engine.settings import Settings, is_offline, is_spread, user_config


def configure(vllm_config: Any) -> None:
    """Check the config, resolve the job's shape and make its engines independent.

    Raises ConfigError with what to change.
    """
    if Settings.load(vllm_config) is not None:
        return
    config = user_config(vllm_config)
    check_config(vllm_config, config)
    parallel = vllm_config.parallel_config
    is_one_rank = is_offline(parallel) or parallel.data_parallel_external_lb
    Settings(
        job_size=parallel.data_parallel_size,
        dwdp_size=dwdp_size(vllm_config, config),
        job_rank=parallel.data_parallel_rank if is_one_rank else None,
        is_spread=is_spread(parallel),
        local_rank=parallel.data_parallel_rank_local,
    ).store(vllm_config)
    if parallel.data_parallel_backend == "ray":
        place_engines_by_ray()
    if is_one_rank:
        collapse_data_parallel(parallel)
    elif parallel.data_parallel_size > 1:
        hide_moe(vllm_config)
