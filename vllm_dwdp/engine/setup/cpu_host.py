# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Divides one host between its CPU ranks: disjoint cores, and a part of the memory for each.

vLLM's own default (`VLLM_CPU_OMP_THREADS_BIND=auto`) binds every rank to the cores of NUMA node
0, and lets each rank take 90 % of that node's memory.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vllm.logger import init_logger
from vllm.utils.cpu_resource_utils import (
    get_allowed_cpu_list,
    get_memory_node_info,
    get_visible_memory_node,
)

from vllm_dwdp.config import ConfigError
from vllm_dwdp.device.numa import read_numa_nodes
from vllm_dwdp.engine.compat import cgroup_memory_limit
from vllm_dwdp.engine.setup.core_lists import (
    BIND_VARIABLE,
    divide,
    memory_share,
    parse_core_lists,
    spread_lists,
)

logger = init_logger("vllm.dwdp")
SIMULATION_VARIABLE = "VLLM_CPU_SIM_MULTI_NUMA"
NODES_VARIABLE = "CPU_VISIBLE_MEMORY_NODES"
RESERVED_VARIABLE = "VLLM_CPU_NUM_OF_RESERVED_CPU"
PLACEMENT_VARIABLES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")
"""With any of these set, importing PyTorch binds a process to one core."""
AUTO, NO_BIND = "auto", "nobind"


@contextmanager
def own_cores(
    parallel_config: Any, rank: int, num_ranks: int, command: range | None = None
) -> Iterator[None]:
    """Within this context, in which workers are spawned, let vLLM bind them to this rank's cores.

    command: the ranks that this command starts; None for all. Raises ConfigError.
    """
    changes = _binding(parallel_config, rank, num_ranks, command or range(num_ranks))
    before = {name: os.environ.get(name) for name in changes}
    _set_environment(changes)
    try:
        yield
    finally:
        _set_environment(before)


def cores_of_ranks(num_ranks: int, command: range) -> list[list[int] | None]:
    """The cores of each rank of the job; None for a rank that another command binds.

    With 'nobind' each rank has all cores that this process may run on. Raises ConfigError.
    """
    given = bind_mode()
    allowed = {cpu.id for cpu in get_allowed_cpu_list()}
    if given == NO_BIND:
        return [sorted(allowed)] * num_ranks
    if given == AUTO:
        reserved = int(os.environ.get(RESERVED_VARIABLE) or 0)
        return list(divide(_physical_cores(), num_ranks, reserved))
    return spread_lists(parse_core_lists(given, allowed), num_ranks, command)


def share_memory(
    vllm_config: Any, num_ranks: int, rank: int = 0, command: range | None = None
) -> None:
    """Reduce a rank's memory fraction to its part of its memory node.

    Does nothing if the user gave the size of the KV cache.
    """
    cache = vllm_config.cache_config
    if cache.kv_cache_memory_bytes is not None:
        return
    nodes = _memory_nodes(cores_of_ranks(num_ranks, command or range(num_ranks)))
    node_bytes = get_memory_node_info(nodes[rank]).total_memory
    cache.gpu_memory_utilization *= memory_share(nodes, rank, node_bytes, cgroup_memory_limit())


def number_engines(parallel_config: Any) -> None:
    """Number a command's engines, as `--device-ids` would, until the executor drops the numbers.

    Otherwise vLLM takes each engine's number from the nodes in CPU_VISIBLE_MEMORY_NODES, which may
    be fewer than the engines. Ray may place more engines on another node than on this one.
    """
    is_by_ray = parallel_config.data_parallel_backend == "ray"
    size, local = parallel_config.data_parallel_size, parallel_config.data_parallel_size_local
    parallel_config.assigned_physical_gpu_ids = list(range(size if is_by_ray else local))


def bind_mode() -> str:
    """The value of VLLM_CPU_OMP_THREADS_BIND: 'auto' (also if unset), 'nobind' or core lists."""
    given = os.environ.get(BIND_VARIABLE, "").strip()
    return given.lower() if given.lower() in (AUTO, NO_BIND) else given or AUTO


def check_visible_nodes() -> str | None:
    """Why vLLM can't use CPU_VISIBLE_MEMORY_NODES, where it would fail late; None if it can."""
    given = os.environ.get(NODES_VARIABLE, "")
    if not given or SIMULATION_VARIABLE in os.environ:
        return None
    if not all(node.strip().isdecimal() for node in given.split(",")):
        return (
            f"expected numbers of memory nodes such as '0,1' in {NODES_VARIABLE}, got '{given}'; "
            "name nodes, or unset it."
        )
    if not get_visible_memory_node():
        return (
            f"{NODES_VARIABLE}='{given}' names no memory node that this process may use; name "
            f"some of {sorted(read_numa_nodes())}, or unset it."
        )
    return None


def _binding(
    parallel_config: Any, rank: int, num_ranks: int, command: range
) -> dict[str, str | None]:
    """The variables that make vLLM bind a rank's worker to its cores. None stands for no variable.

    vLLM's simulation of NUMA nodes would divide the cores once more, and works with 'auto' only.
    So its variable is removed.
    """
    given = bind_mode()
    changes: dict[str, str | None] = {BIND_VARIABLE: given, SIMULATION_VARIABLE: None}
    if SIMULATION_VARIABLE in os.environ:
        changes[NODES_VARIABLE] = None  # the simulation ignores it
    if given == NO_BIND or (given == AUTO and num_ranks == 1):
        return changes
    cores = cores_of_ranks(num_ranks, command)
    own = cores[rank]
    assert own is not None, "a rank's own command binds it"
    _warn_of_shared_cores(own, [of_rank for of_rank in cores if of_rank is not None])
    # vLLM binds a worker to the list at the position of its local rank, if it knows that rank.
    text = ",".join(map(str, own))
    changes |= dict.fromkeys(PLACEMENT_VARIABLES)
    local_rank = parallel_config.data_parallel_rank_local or 0
    changes[BIND_VARIABLE] = "|".join([text] * (local_rank + 1))
    return changes


def _warn_of_shared_cores(own: list[int], cores: list[list[int]]) -> None:
    num_sharing = sum(not set(own).isdisjoint(of_rank) for of_rank in cores)
    if num_sharing > 1:
        logger.warning(
            "%d dwdp ranks share cores of %s; expect them to slow each other.", num_sharing, own
        )


def _physical_cores() -> list[int]:
    """One logical CPU per physical core on visible nodes, ordered by NUMA node."""
    visible = set(get_visible_memory_node()) if os.environ.get(NODES_VARIABLE) else None
    cpus = sorted(get_allowed_cpu_list(), key=lambda cpu: (cpu.numa_node, cpu.id))
    chosen = {
        (cpu.numa_node, cpu.physical_core): cpu.id
        for cpu in cpus
        if visible is None or cpu.numa_node in visible
    }
    if not chosen:
        raise ConfigError(
            f"the memory nodes of {NODES_VARIABLE}='{os.environ[NODES_VARIABLE]}' have none of "
            "the cores that this process may run on; name other nodes, or unset it."
        )
    return list(chosen.values())


def _memory_nodes(cores: list[list[int] | None]) -> list[int | None]:
    """The memory node of each rank's worker: that of the rank's first core, if it is visible.

    Else the first visible node, as in vLLM; None if the rank's cores aren't known.
    """
    node_of = {cpu.id: cpu.numa_node for cpu in get_allowed_cpu_list()}
    visible = get_visible_memory_node()
    nodes = [None if of_rank is None else node_of[of_rank[0]] for of_rank in cores]
    return [node if node is None or node in visible else visible[0] for node in nodes]


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
