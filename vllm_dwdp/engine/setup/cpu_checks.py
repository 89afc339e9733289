# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Refuses CPU settings in the environment on which vLLM would fail later, without naming them.

Each check looks at one thing and returns the sentence that refuses it, or None.
"""

import os
from typing import Any

import psutil

from vllm_dwdp.config import ConfigError, DwdpConfig
from vllm_dwdp.engine.compat import cgroup_memory_limit
from vllm_dwdp.engine.setup import cpu_host
from vllm_dwdp.engine.setup.core_lists import BIND_VARIABLE, ranges_text
from vllm_dwdp.engine.setup.settings import command_ranks, num_ranks_beside

NUMBERS = {
    "VLLM_CPU_KVCACHE_SPACE": (1, "GiB for the KV cache of each rank"),
    cpu_host.RESERVED_VARIABLE: (0, "cores of each rank to leave to other processes"),
    "VLLM_CPU_CI_ENV": (0, "0 or 1"),
    "VLLM_CPU_ATTN_SPLIT_KV": (0, "0 or 1"),
    "VLLM_CPU_INT4_W4A8": (0, "0 or 1"),
    "VLLM_ZENTORCH_WEIGHT_PREPACK": (0, "0 or 1"),
}
"""vLLM's variables that hold whole numbers; of each, the smallest valid number and its meaning."""


def check_cpu(vllm_config: Any, config: DwdpConfig) -> str | None:
    """Why these ranks can't run on this host's cores and memory; None on other devices."""
    if vllm_config.device_config.device_type != "cpu":
        return None
    return (
        check_environment()
        or _placement(vllm_config.parallel_config)
        or _cores(vllm_config.parallel_config, config)
        or _cache_size(vllm_config)
    )


def check_environment() -> str | None:
    """Why vLLM's CPU backend can't use a variable of the environment; None if it can use all."""
    return _numbers() or _openmp() or cpu_host.check_visible_nodes()


def _numbers() -> str | None:
    for name, (least, meaning) in NUMBERS.items():
        given = os.environ.get(name)
        if given is None:
            continue
        try:
            is_right = int(given) >= least
        except ValueError:
            is_right = False
        if not is_right:
            return (
                f"expected a whole number of at least {least} ({meaning}) in {name}, got "
                f"'{given}'; correct or unset it."
            )
    return None


def _openmp() -> str | None:
    preloaded = os.environ.get("LD_PRELOAD", "")
    if "libgomp" in preloaded and ("libiomp" in preloaded or "libomp" in preloaded):
        return (
            f"expected one OpenMP library in LD_PRELOAD, got '{preloaded}'; preload libgomp or "
            "libiomp5, not both."
        )
    return None


def _placement(parallel: Any) -> str | None:
    if parallel.data_parallel_size == 1 or cpu_host.bind_mode() == cpu_host.NO_BIND:
        return None
    for name in cpu_host.PLACEMENT_VARIABLES:
        given = os.environ.get(name)
        if given and not (name == "OMP_PROC_BIND" and given.strip().lower() == "false"):
            return (
                f"expected dwdp to give each of {parallel.data_parallel_size} ranks its cores, "
                f"{name}='{given}' binds all of them to one core; unset it, and name the cores of "
                f"every rank in {BIND_VARIABLE} if need be."
            )
    return None


def _cores(parallel: Any, config: DwdpConfig) -> str | None:
    size = num_ranks_beside(parallel)
    first, number = command_ranks(parallel) or (0, size)
    try:
        found = cpu_host.cores_of_ranks(size, range(first, first + number))
    except ConfigError as error:
        return str(error)
    for rank in range(first, first + number):
        cores = found[rank] or []
        if config.copy_threads > len(cores):
            return (
                f"dwdp.copy_threads must be at most the cores of a rank, rank {rank} has "
                f"{len(cores)} ({ranges_text(cores)}), got {config.copy_threads}."
            )
    return None


def _cache_size(vllm_config: Any) -> str | None:
    """vLLM reads VLLM_CPU_KVCACHE_SPACE later than this; it overrides the option."""
    given = os.environ.get("VLLM_CPU_KVCACHE_SPACE")
    size = int(given) << 30 if given else vllm_config.cache_config.kv_cache_memory_bytes
    parallel = vllm_config.parallel_config
    is_by_ray = parallel.data_parallel_backend == "ray"
    num_ranks = parallel.data_parallel_size_local if is_by_ray else num_ranks_beside(parallel)
    total = min(psutil.virtual_memory().total, cgroup_memory_limit() or 1 << 62)
    if size is None or 0 < size * num_ranks <= total:
        return None
    name = "VLLM_CPU_KVCACHE_SPACE" if given else "--kv-cache-memory-bytes"
    return (
        f"expected KV caches of {num_ranks} ranks that fit into the {total / 2**30:.1f} GiB of "
        f"this host, got {num_ranks} x {size / 2**30:.1f} GiB; correct {name}."
    )
