# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What this process asks the Ray cluster, and what it sets so that engines run in Ray's actors."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

from vllm import envs
from vllm.platforms import current_platform

from vllm_dwdp.engine.setup.ray_nodes import DOMAIN_LABEL, RayNode
from vllm_dwdp.group.meet import secret

KEEP_GPUS = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
COPIED_TO_ACTORS = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"
OF_ONE_NODE = ("VLLM_HOST_IP", "VLLM_HOST_PORT", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES")
"""Variables that are wrong on another node."""
SETTLE_S = 10.0
"""Ray needs some seconds to free what a job had that has just ended."""

T = TypeVar("T")


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


def device_of_engine() -> str:
    """The resource of Ray that an engine needs one of; "" if vLLM finds no device here."""
    return str(current_platform.ray_device_key)


def rank_variables() -> dict[str, str]:
    """The variables of this process that ranks of vllm_dwdp.LLM get on other nodes.

    vLLM copies the same ones to its own actors. Those of a secret are left out: such ranks meet on
    their node's loopback address, where they need none.
    """
    from vllm.ray.ray_env import get_env_vars_to_copy

    kept_back = {*OF_ONE_NODE, secret.VARIABLE, secret.FILE_VARIABLE}
    copied = get_env_vars_to_copy(exclude_vars=kept_back, destination="the ranks")
    return {name: os.environ[name] for name in copied if name in os.environ}


def live_nodes(front_end: str | None) -> list[RayNode]:
    """The nodes that vLLM may use, in the order in which vLLM sees them.

    front_end: the address of the front-end's node, which vLLM uses whatever
    VLLM_RAY_DP_PLACEMENT_NODE_IPS says; None if there is no front-end.
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
    return [node for node in found if _is_allowed(node, front_end)]


def once_settled(attempt: Callable[[], T]) -> T:
    """What `attempt` returns. While it raises ValueError, it is called again for SETTLE_S."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            return attempt()
        except ValueError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def _is_allowed(node: RayNode, front_end: str | None) -> bool:
    given = [part.strip() for part in envs.VLLM_RAY_DP_PLACEMENT_NODE_IPS.split(",")]
    return not any(given) or node.address in (*given, front_end)
