# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks of a job's shape: its ranks, its hosts, and the address where the ranks meet.

Each check returns the sentence that refuses a configuration, or None.
"""

from typing import Any

from vllm import envs

from vllm_dwdp.config import DwdpConfig, parse_endpoint
from vllm_dwdp.device import memory_kind
from vllm_dwdp.engine.setup.environment import reason_unreadable
from vllm_dwdp.engine.setup.local_address import is_local
from vllm_dwdp.engine.setup.settings import (
    LOOPBACK,
    command_ranks,
    has_peers_of_other_commands,
    is_headless,
    is_offline,
    is_spread,
)
from vllm_dwdp.group.meet.secret import read_secret, reason_unprotected
from vllm_dwdp.layout.placement import Placement, PlacementError


def dwdp_size(vllm_config: Any, config: DwdpConfig) -> int:
    return config.dwdp_size or int(vllm_config.parallel_config.data_parallel_size)


def placement_of(vllm_config: Any, config: DwdpConfig) -> Placement:
    return Placement.make(
        num_experts=vllm_config.model_config.get_num_experts(),
        dwdp_size=dwdp_size(vllm_config, config),
        num_experts_per_worker=config.num_experts_per_worker,
        host_experts=config.given_host_experts,
    )


def environment(vllm_config: Any, config: DwdpConfig) -> str | None:
    return reason_unreadable() or _startup_plan()


def _startup_plan() -> str | None:
    """Refuse vLLM's note of an earlier start's KV cache, which it keeps for all ranks as one."""
    name = "VLLM_ENABLE_STARTUP_PLAN"
    read = envs.environment_variables.get(name)
    if read is None or not read():
        return None
    return (
        f"{name} has vLLM size a rank's KV cache as another rank's, which may hold other experts "
        "and slots; unset it."
    )


def group_size(vllm_config: Any, config: DwdpConfig) -> str | None:
    job_size = vllm_config.parallel_config.data_parallel_size
    if reason := reason_uneven(job_size, dwdp_size(vllm_config, config)):
        return reason
    try:
        placement_of(vllm_config, config)
    except PlacementError as error:
        return str(error)
    return None


def reason_uneven(job_size: int, group_size: int) -> str | None:
    """Why ranks don't make whole groups, or None."""
    if job_size % group_size == 0:
        return None
    return f"dwdp_size must divide the data-parallel size {job_size}, got {group_size}."


def ranks(vllm_config: Any, config: DwdpConfig) -> str | None:
    """Refuse a command whose ranks lie outside of the job; vLLM doesn't check that."""
    parallel = vllm_config.parallel_config
    size = parallel.data_parallel_size
    by_environment = is_offline(parallel)
    first, number = command_ranks(parallel) or (
        parallel.data_parallel_rank,
        1 if by_environment else 0,
    )
    if first >= 0 and first + number <= size:
        return None
    options = (
        "VLLM_DP_RANK and VLLM_DP_SIZE"
        if by_environment
        else "--data-parallel-rank, --data-parallel-start-rank and --data-parallel-size-local"
    )
    named = f"rank {first}" if number == 1 else f"ranks {first} to {first + number - 1}"
    return (
        f"expected ranks from 0 to {size - 1} of a job of {size}, this command starts {named}; "
        f"correct {options}."
    )


def headless(vllm_config: Any, config: DwdpConfig) -> str | None:
    """Refuse --headless with --data-parallel-rank.

    The engine would wait forever for a front-end, since each front-end serves only its own rank.
    """
    parallel = vllm_config.parallel_config
    if parallel.data_parallel_external_lb and is_headless():
        return (
            "--headless starts ranks for the front-end of another command, --data-parallel-rank "
            "starts one with a front-end of its own; drop --headless, or give both commands "
            "--data-parallel-size-local instead of --data-parallel-rank, and this one "
            f"--data-parallel-start-rank {parallel.data_parallel_rank}."
        )
    return None


def hosts_of_a_rank(vllm_config: Any, config: DwdpConfig) -> str | None:
    num_hosts = vllm_config.parallel_config.nnodes
    if num_hosts > 1:
        return (
            f"a dwdp rank is one worker on one host, got nnodes={num_hosts}; start ranks on "
            "other hosts with --headless --data-parallel-start-rank."
        )
    return None


def forms_of_ray(vllm_config: Any, config: DwdpConfig) -> str | None:
    """Refuse Ray for a command that starts only some of the ranks."""
    parallel = vllm_config.parallel_config
    if parallel.data_parallel_backend == "ray" and (
        parallel.data_parallel_external_lb
        or parallel.data_parallel_hybrid_lb
        or is_offline(parallel)
        or is_headless()
    ):
        return (
            "Ray starts all ranks of a job for one front-end, this command is for some of them; "
            "drop --data-parallel-rank, --data-parallel-hybrid-lb, --headless and VLLM_DP_*, or "
            "--data-parallel-backend ray."
        )
    return None


def hosts_of_host_memory(vllm_config: Any, config: DwdpConfig) -> str | None:
    parallel = vllm_config.parallel_config
    address = parallel.data_parallel_master_ip
    if memory_kind(vllm_config.device_config.device_type) != "host" or is_local(address):
        return None
    if has_peers_of_other_commands(parallel):
        return (
            "dwdp ranks that share host memory must be on one host, expected a data-parallel "
            f"address of this host, got {address}; start one job per host."
        )
    return None


def rendezvous(vllm_config: Any, config: DwdpConfig) -> str | None:
    parallel = vllm_config.parallel_config
    if config.rendezvous or parallel.data_parallel_size == 1:
        return None
    if is_offline(parallel):
        if parallel.data_parallel_master_port == 0:
            return (
                "expected the port where the ranks meet in VLLM_DP_MASTER_PORT, it is not set; "
                "set it to a free port, the same for all ranks."
            )
    elif is_spread(parallel) and parallel.data_parallel_rpc_port >= 65_535:
        return (
            "dwdp ranks meet at the port after --data-parallel-rpc-port, "
            f"{parallel.data_parallel_rpc_port} is the last there is; choose a lower one."
        )
    return None


def secret(vllm_config: Any, config: DwdpConfig) -> str | None:
    """Why the ranks need a secret. Raises ConfigError for one that can't be read."""
    given = read_secret()
    if dwdp_size(vllm_config, config) == 1:
        return None
    host = _store_host(vllm_config, config)
    return reason_unprotected(host, secret=given, needs_secret=config.require_secret)


def _store_host(vllm_config: Any, config: DwdpConfig) -> str:
    """The address of the start-up store; with Ray that of a job on one node."""
    if config.rendezvous:
        return parse_endpoint(config.rendezvous)[0]
    parallel = vllm_config.parallel_config
    shares_host_memory = memory_kind(vllm_config.device_config.device_type) == "host"
    if shares_host_memory or not has_peers_of_other_commands(parallel):
        return LOOPBACK
    return str(parallel.data_parallel_master_ip)


def in_process(vllm_config: Any, config: DwdpConfig) -> str | None:
    if vllm_config.parallel_config.data_parallel_size > 1 and not (
        envs.VLLM_ENABLE_V1_MULTIPROCESSING
    ):
        return (
            "dwdp needs engines in processes of their own for more than one rank; "
            "unset VLLM_ENABLE_V1_MULTIPROCESSING=0."
        )
    return None
