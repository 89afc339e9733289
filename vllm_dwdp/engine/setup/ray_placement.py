# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Lets Ray place engines on one node or several, and checks beforehand where they will be.

The front-end connects to Ray while it checks the configuration, as vLLM would a moment later. It
refuses a cluster on which a group would be torn apart, or engines would wait for resources forever.
"""

import multiprocessing
from typing import Any

from vllm import envs

from vllm_dwdp.config import ConfigError, DwdpConfig
from vllm_dwdp.device import memory_kind
from vllm_dwdp.engine.setup.front_end import API_SERVERS
from vllm_dwdp.engine.setup.job_checks import dwdp_size
from vllm_dwdp.engine.setup.ray_cluster import (
    device_of_engine,
    live_nodes,
    once_settled,
    place_engines_by_ray,
)
from vllm_dwdp.engine.setup.ray_nodes import (
    RayJob,
    nodes_of_ranks,
    ranks_of_nodes,
    reason_spread,
    reason_unplaceable,
)
from vllm_dwdp.group.meet.secret import read_secret, reason_unprotected


def ray_nodes(vllm_config: Any, config: DwdpConfig) -> str | None:
    """Why the engines can't be placed on the nodes of the Ray cluster; None if they can."""
    if not _starts_actors(vllm_config.parallel_config):
        return None
    place_engines_by_ray()
    if reason := reason_spread(envs.VLLM_RAY_DP_PACK_STRATEGY):
        return reason
    try:
        ranks = once_settled(lambda: planned_ranks(vllm_config, config))
    except ConfigError as error:
        return str(error)
    return _reason_unprotected(vllm_config, config, is_on_one_node=len(ranks) == 1)


def planned_ranks(vllm_config: Any, config: DwdpConfig) -> tuple[int, ...]:
    """How many ranks vLLM will place on each Ray node, in the order of the ranks.

    Empty if this process starts no engines by Ray. Raises ConfigError if the nodes have too little
    free now.
    """
    if not _starts_actors(vllm_config.parallel_config):
        return ()
    job = _job(vllm_config, config)
    nodes = live_nodes(job.address)
    if reason := reason_unplaceable(nodes, job):
        raise ConfigError(reason)
    return ranks_of_nodes(nodes_of_ranks(nodes, job))


def _reason_unprotected(
    vllm_config: Any, config: DwdpConfig, *, is_on_one_node: bool
) -> str | None:
    """Why ranks on several nodes, whose store listens at the data-parallel address, need a secret.

    `job_checks.secret` looks at an address that the user gives, and at jobs of one node.
    """
    if config.rendezvous or is_on_one_node or dwdp_size(vllm_config, config) == 1:
        return None
    host = vllm_config.parallel_config.data_parallel_master_ip
    return reason_unprotected(host, secret=read_secret(), needs_secret=config.require_secret)


def _starts_actors(parallel: Any) -> bool:
    """Whether this process starts the engines: API servers beside it only talk to them."""
    is_api_server = multiprocessing.current_process().name.startswith(API_SERVERS)
    return parallel.data_parallel_backend == "ray" and not is_api_server


def _job(vllm_config: Any, config: DwdpConfig) -> RayJob:
    parallel = vllm_config.parallel_config
    return RayJob(
        size=parallel.data_parallel_size,
        size_local=parallel.data_parallel_size_local,
        dwdp_size=dwdp_size(vllm_config, config),
        address=parallel.data_parallel_master_ip,
        strategy=envs.VLLM_RAY_DP_PACK_STRATEGY,
        device=device_of_engine(),
        shares_host_memory=memory_kind(vllm_config.device_config.device_type) == "host",
    )
