# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Lets Ray place engines on one node or several, and checks beforehand where they will be.

The front-end connects to Ray while it checks the configuration, as vLLM would a moment later. It
refuses a cluster on which a group would be torn apart, or engines would wait for resources forever.
"""

import multiprocessing
import os
import time
from typing import Any

from vllm import envs
from vllm.platforms import current_platform

from vllm_dwdp.config import ConfigError, DwdpConfig
from vllm_dwdp.device import memory_kind
from vllm_dwdp.engine.setup.front_end import API_SERVERS
from vllm_dwdp.engine.setup.job_checks import dwdp_size
from vllm_dwdp.engine.setup.ray_nodes import (
    DOMAIN_LABEL,
    STRATEGIES,
    RayJob,
    RayNode,
    nodes_of_ranks,
    ranks_of_nodes,
    reason_unplaceable,
)
from vllm_dwdp.group.meet.secret import read_secret, reason_unprotected

KEEP_GPUS = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
COPIED_TO_ACTORS = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"
OF_ONE_NODE = ("VLLM_HOST_IP", "VLLM_HOST_PORT", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES")
"""Variables that are wrong on another node."""
SETTLE_S = 10.0
"""Ray needs some seconds to free what a job had that has just ended."""


def place_engines_by_ray() -> None:
    """Let vLLM ask Ray for a device of each engine: on CPUs, where vLLM names none, for a CPU.

    Every engine's actor sees all GPUs of its host, so that it can read the memory of its peers'.
    vLLM reserves a GPU in the engine's placement group, but not for the actor itself. Ray before
    2.49 therefore hides all GPUs from the actor.
    """
    if current_platform.is_cpu():
        current_platform.ray_device_key = "CPU"
    os.environ.setdefault(KEEP_GPUS, "1")
    copied = os.environ.get(COPIED_TO_ACTORS, "")
    if KEEP_GPUS not in copied:
        os.environ[COPIED_TO_ACTORS] = f"{copied},{KEEP_GPUS}".strip(",")


def ray_nodes(vllm_config: Any, config: DwdpConfig) -> str | None:
    """Why the engines can't be placed on the nodes of the Ray cluster; None if they can."""
    if not _starts_actors(vllm_config.parallel_config):
        return None
    place_engines_by_ray()
    job = _job(vllm_config, config)
    deadline = time.monotonic() + SETTLE_S
    while reason := reason_unplaceable(live_nodes(job.address), job):
        if time.monotonic() > deadline or job.strategy not in STRATEGIES:
            return reason
        time.sleep(0.5)
    return _reason_unprotected(vllm_config, config)


def planned_ranks(vllm_config: Any, config: DwdpConfig) -> tuple[int, ...]:
    """How many ranks vLLM will place on each Ray node, in the order of the ranks.

    Empty if this process starts no engines by Ray. Raises ConfigError if what the nodes have free
    has changed since `ray_nodes` looked, so that the job no longer fits.
    """
    if not _starts_actors(vllm_config.parallel_config):
        return ()
    job = _job(vllm_config, config)
    nodes = live_nodes(job.address)
    if reason := reason_unplaceable(nodes, job):
        raise ConfigError(reason)
    return ranks_of_nodes(nodes_of_ranks(nodes, job))


def device_of_engine() -> str:
    """The resource of Ray that an engine needs one of."""
    place_engines_by_ray()
    return str(current_platform.ray_device_key)


def actor_environment() -> dict[str, str]:
    """The variables of this process that vLLM, too, copies to actors on other nodes."""
    from vllm.ray.ray_env import get_env_vars_to_copy

    place_engines_by_ray()
    copied = get_env_vars_to_copy(exclude_vars=set(OF_ONE_NODE), destination="the ranks")
    return {name: os.environ[name] for name in copied if name in os.environ}


def _reason_unprotected(vllm_config: Any, config: DwdpConfig) -> str | None:
    """Why ranks on several nodes, whose store listens at the data-parallel address, need a secret.

    `job_checks.secret` looks at an address that the user gives, and at jobs of one node.
    """
    is_on_one_node = len(planned_ranks(vllm_config, config)) == 1
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
        device=current_platform.ray_device_key,
        shares_host_memory=memory_kind(vllm_config.device_config.device_type) == "host",
    )


def live_nodes(master: str) -> list[RayNode]:
    """The nodes that vLLM may use, in the order in which vLLM sees them.

    master: the address of the front-end's own node.
    """
    import ray
    from ray._private.state import available_resources_per_node

    if not ray.is_initialized():
        ray.init()
    known = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    found = [
        RayNode(
            address=known[node_id]["NodeManagerAddress"],
            name=known[node_id]["NodeManagerHostname"],
            free=free,
            domain=known[node_id].get("Labels", {}).get(DOMAIN_LABEL, ""),
            node_id=node_id,
        )
        for node_id, free in available_resources_per_node().items()
        if node_id in known
    ]
    return [node for node in found if _is_allowed(node, master)]


def _is_allowed(node: RayNode, master: str) -> bool:
    """Whether vLLM may place engines on this node; it always uses the front-end's own."""
    given = [part.strip() for part in envs.VLLM_RAY_DP_PLACEMENT_NODE_IPS.split(",")]
    return not any(given) or node.address in (*given, master)
