# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One host for all CPU ranks: disjoint cores, and memory divided between their KV caches.

vLLM's own default (`VLLM_CPU_OMP_THREADS_BIND=auto`) binds every rank to the cores of NUMA node
0, and lets each take 90 % of its memory.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm.logger import init_logger
from vllm.utils.cpu_resource_utils import get_allowed_cpu_list

from vllm_dwdp.config import ConfigError

logger = init_logger("vllm.dwdp")
BIND_VARIABLE = "VLLM_CPU_OMP_THREADS_BIND"
NUMA_NODES = Path("/sys/devices/system/node")
NO_NUMA_NODE = -1


@contextmanager
def own_cores(parallel_config: Any, rank: int, num_ranks: int) -> Iterator[None]:
    """While workers are spawned, bind them to this rank's share, unless the user bound them."""
    given = os.environ.get(BIND_VARIABLE, "auto")
    if num_ranks > 1 and given == "auto":
        os.environ[BIND_VARIABLE] = _bind_list(parallel_config, rank, num_ranks)
    elif "|" in given and parallel_config.data_parallel_rank_local is None:
        os.environ[BIND_VARIABLE] = _given_cores(given, rank, num_ranks)
    try:
        yield
    finally:
        os.environ[BIND_VARIABLE] = given


def share_memory(vllm_config: Any, num_ranks: int) -> None:
    """Give each rank its part of the memory fraction, unless the KV cache size was given."""
    cache = vllm_config.cache_config
    if cache.kv_cache_memory_bytes is None:
        cache.gpu_memory_utilization /= num_ranks


def own_numa_node() -> int:
    """The NUMA node of the cores that this process is bound to, or NO_NUMA_NODE."""
    return numa_node_of(os.sched_getaffinity(0), read_numa_nodes())


def numa_node_of(cores: Iterable[int], nodes: Mapping[int, int]) -> int:
    """The node with all of the cores; NO_NUMA_NODE where they span several or none is known.

    nodes: the cores of each node, as a bit mask.
    """
    wanted = sum(1 << core for core in set(cores))
    found = [node for node, mask in nodes.items() if wanted and not wanted & ~mask]
    return found[0] if found else NO_NUMA_NODE


def read_numa_nodes(root: Path = NUMA_NODES) -> dict[int, int]:
    """What the kernel says of each node's cores, as a bit mask; empty where it says nothing."""
    return {
        int(file.parent.name.removeprefix("node")): int(file.read_text().replace(",", ""), 16)
        for file in root.glob("node[0-9]*/cpumap")
    }


def cores_of_rank(cores: Sequence[int], rank: int, num_ranks: int) -> list[int]:
    """A contiguous share of the cores; with fewer cores than ranks, one core in turn."""
    if len(cores) < num_ranks:
        return [cores[rank % len(cores)]]
    base, more = divmod(len(cores), num_ranks)
    start = rank * base + min(rank, more)
    return list(cores[start : start + base + (rank < more)])


def _given_cores(given: str, rank: int, num_ranks: int) -> str:
    shares = given.split("|")
    if len(shares) < num_ranks:
        raise ConfigError(
            f"expected cores for {num_ranks} ranks in {BIND_VARIABLE}, separated by '|', got "
            f"'{given}'; name the cores of every rank, or none to let dwdp divide them."
        )
    return shares[rank]


def _bind_list(parallel_config: Any, rank: int, num_ranks: int) -> str:
    """What VLLM_CPU_OMP_THREADS_BIND must say: vLLM picks its entry by the local rank."""
    cores = _physical_cores()
    if len(cores) < num_ranks:
        logger.warning(
            "%d dwdp ranks share %d cores; expect them to slow each other.", num_ranks, len(cores)
        )
    local_rank = parallel_config.data_parallel_rank_local
    shares = [_text(cores_of_rank(cores, r, num_ranks)) for r in range(num_ranks)]
    if local_rank is None:
        return shares[rank]
    return "|".join(shares[rank - local_rank :])


def _physical_cores() -> list[int]:
    """One logical CPU per physical core, those of a NUMA node together."""
    cpus = sorted(get_allowed_cpu_list(), key=lambda cpu: (cpu.numa_node, cpu.id))
    chosen = {(cpu.numa_node, cpu.physical_core): cpu.id for cpu in cpus}
    return list(chosen.values())


def _text(cores: Sequence[int]) -> str:
    return ",".join(map(str, cores))
