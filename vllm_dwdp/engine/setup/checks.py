# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Everything that can't work, refused before a process is spawned or a weight is read.

Each check looks at one thing and returns the sentence that refuses it, or None.
"""

from collections.abc import Callable
from typing import Any

import torch
from vllm import envs

from vllm_dwdp.config import AUTO, ConfigError, DwdpConfig, usable_slots
from vllm_dwdp.device import memory_kind
from vllm_dwdp.engine.compat import wants_fault_tolerance
from vllm_dwdp.engine.setup.cpu_checks import check_cpu
from vllm_dwdp.engine.setup.drafts import draft_refusal
from vllm_dwdp.engine.setup.environment import reason_unreadable
from vllm_dwdp.engine.setup.local_address import is_local
from vllm_dwdp.engine.setup.settings import (
    command_ranks,
    has_peers_of_other_commands,
    is_headless,
    is_offline,
    is_spread,
)
from vllm_dwdp.layout.placement import Placement, PlacementError
from vllm_dwdp.memory.limits import LimitError, check_map_budget, num_maps_needed

LOAD_FORMATS = ("auto", "hf", "safetensors", "mistral", "pt", "npcache", "dummy")
Check = Callable[[Any, DwdpConfig], str | None]


def check_config(vllm_config: Any, config: DwdpConfig) -> None:
    """Raise ConfigError with the first reason why this configuration can't work."""
    for check in CHECKS:
        if reason := check(vllm_config, config):
            raise ConfigError(reason)


def dwdp_size(vllm_config: Any, config: DwdpConfig) -> int:
    return config.dwdp_size or int(vllm_config.parallel_config.data_parallel_size)


def _environment(vllm_config: Any, config: DwdpConfig) -> str | None:
    return reason_unreadable()


def _platform(vllm_config: Any, config: DwdpConfig) -> str | None:
    device_type = vllm_config.device_config.device_type
    if device_type == "cpu" or (device_type == "cuda" and torch.version.hip is None):
        return None
    return f"dwdp runs on CPUs and NVIDIA's GPUs, this is '{device_type}'; drop the option."


def _model(vllm_config: Any, config: DwdpConfig) -> str | None:
    model = vllm_config.model_config
    if model is None or model.get_num_experts() < 1:
        name = getattr(model, "model", None)
        return f"dwdp serves Mixture-of-Experts models, {name!r} has no experts; drop the option."
    is_on_gpu = vllm_config.device_config.device_type == "cuda"
    if model.quantization not in ((None, "fp8") if is_on_gpu else (None,)):
        return (
            f"dwdp can't rebuild the expert kernels of quantization method "
            f"'{model.quantization}' yet; use an unquantised (bf16, fp16, fp32) checkpoint"
            f"{', or fp8' if is_on_gpu else ''}."
        )
    if model.enable_sleep_mode:
        return "dwdp can't sleep: peers read the experts of this rank; drop --enable-sleep-mode."
    if model.enable_cumem_allocator:
        return (
            "dwdp frees loaded weights once they are shared, vLLM's own allocator would keep their "
            "memory; drop --enable-cumem-allocator."
        )
    return None


def _expert_parallel(vllm_config: Any, config: DwdpConfig) -> str | None:
    parallel = vllm_config.parallel_config
    if parallel.enable_elastic_ep:
        return "dwdp has a fixed set of ranks; drop --enable-elastic-ep."
    if wants_fault_tolerance(parallel):
        return (
            "dwdp has no all-to-all whose failures vLLM could outlive; drop "
            "--enable-fault-tolerance. Ranks with a server each go on when a peer dies."
        )
    if parallel.enable_eplb:
        return "dwdp needs no expert load balancing, tokens never travel; drop --enable-eplb."
    if parallel.enable_expert_parallel:
        return "dwdp replaces expert parallelism; drop --enable-expert-parallel."
    return None


def _inner_parallel(vllm_config: Any, config: DwdpConfig) -> str | None:
    parallel = vllm_config.parallel_config
    for option in (
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "prefill_context_parallel_size",
        "decode_context_parallel_size",
    ):
        if (size := getattr(parallel, option)) != 1:
            return (
                f"a dwdp rank is one worker, got {option}={size}; "
                "use --data-parallel-size for all of it."
            )
    if not parallel.worker_cls.startswith(("auto", "vllm.", "vllm_dwdp.")):
        return (
            f"a dwdp rank has a worker of its own, got --worker-cls {parallel.worker_cls}; drop "
            "it, or add methods to that worker with --worker-extension-cls."
        )
    if parallel.enable_dbo or parallel.ubatch_size > 1:
        return "dwdp doesn't support dual-batch overlap; drop --enable-dbo and --ubatch-size."
    return None


def _group_size(vllm_config: Any, config: DwdpConfig) -> str | None:
    job_size = vllm_config.parallel_config.data_parallel_size
    size = dwdp_size(vllm_config, config)
    if job_size % size:
        return f"dwdp_size must divide the data-parallel size {job_size}, got {size}."
    try:
        _placement(vllm_config, config)
    except PlacementError as error:
        return str(error)
    return None


def _host_experts(vllm_config: Any, config: DwdpConfig) -> str | None:
    if config.host_experts and memory_kind(vllm_config.device_config.device_type) == "host":
        return (
            f"dwdp.host_experts is for ranks on GPUs, got {config.host_experts} for ranks on CPUs, "
            "all of whose memory is the host's; leave it out."
        )
    if config.host_experts == AUTO and vllm_config.load_config.load_format == "dummy":
        return (
            "dwdp.host_experts 'auto' needs weights that are loaded, got --load-format dummy; give "
            "a number."
        )
    return None


def _ranks(vllm_config: Any, config: DwdpConfig) -> str | None:
    """vLLM doesn't compare the ranks that a command starts with the size of the job."""
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


def _headless(vllm_config: Any, config: DwdpConfig) -> str | None:
    """Its engine would wait for a front-end that listens for its own rank alone."""
    parallel = vllm_config.parallel_config
    if parallel.data_parallel_external_lb and is_headless():
        return (
            "--headless starts ranks for the front-end of another command, --data-parallel-rank "
            "starts one with a front-end of its own; drop --headless, or give both commands "
            "--data-parallel-size-local instead of --data-parallel-rank, and this one "
            f"--data-parallel-start-rank {parallel.data_parallel_rank}."
        )
    return None


def _hosts_of_a_rank(vllm_config: Any, config: DwdpConfig) -> str | None:
    num_hosts = vllm_config.parallel_config.nnodes
    if num_hosts > 1:
        return (
            f"a dwdp rank is one worker on one host, got nnodes={num_hosts}; start ranks on "
            "other hosts with --headless --data-parallel-start-rank."
        )
    return None


def _hosts_of_ray(vllm_config: Any, config: DwdpConfig) -> str | None:
    parallel = vllm_config.parallel_config
    if parallel.data_parallel_backend == "ray" and has_peers_of_other_commands(parallel):
        return (
            "dwdp lets Ray place engines on one host only, this job has "
            f"{parallel.data_parallel_size_local} of {parallel.data_parallel_size} ranks here; "
            "start ranks on other hosts with --headless --data-parallel-start-rank."
        )
    return None


def _hosts_of_host_memory(vllm_config: Any, config: DwdpConfig) -> str | None:
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


def _rendezvous(vllm_config: Any, config: DwdpConfig) -> str | None:
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


def _in_process(vllm_config: Any, config: DwdpConfig) -> str | None:
    if vllm_config.parallel_config.data_parallel_size > 1 and not (
        envs.VLLM_ENABLE_V1_MULTIPROCESSING
    ):
        return (
            "dwdp needs engines in processes of their own for more than one rank; "
            "unset VLLM_ENABLE_V1_MULTIPROCESSING=0."
        )
    return None


def _writers(vllm_config: Any, config: DwdpConfig) -> str | None:
    if vllm_config.lora_config is not None:
        return "dwdp doesn't support LoRA: vLLM would wrap the expert layers; drop --enable-lora."
    if vllm_config.weight_transfer_config is not None:
        return (
            "dwdp's expert weights are read-only, weight transfer can't write to them; "
            "drop --weight-transfer-config."
        )
    offload = vllm_config.offload_config
    if offload.uva.cpu_offload_gb or offload.prefetch.offload_group_size:
        return "dwdp can't be combined with weight offloading; drop the offload options."
    return None


def _loader(vllm_config: Any, config: DwdpConfig) -> str | None:
    load_format = str(vllm_config.load_config.load_format)
    if load_format not in LOAD_FORMATS:
        return (
            f"dwdp needs vLLM's own weight loading to read only a rank's experts, load format "
            f"'{load_format}' bypasses it; use one of {', '.join(LOAD_FORMATS)}."
        )
    return None


def _drafts(vllm_config: Any, config: DwdpConfig) -> str | None:
    return draft_refusal(vllm_config.speculative_config)


def _num_slots(vllm_config: Any, config: DwdpConfig) -> str | None:
    """Any layer may have experts, as far as is known; the layers themselves are counted later."""
    num_layers = vllm_config.model_config.get_total_num_hidden_layers()
    try:
        usable_slots(config.num_slots, num_layers or config.num_slots, of="layers")
    except ConfigError as error:
        return str(error)
    return None


def _map_budget(vllm_config: Any, config: DwdpConfig) -> str | None:
    if vllm_config.device_config.device_type != "cpu":
        return None  # a GPU's mappings are not the process's
    needed = num_maps_needed(
        _placement(vllm_config, config),
        num_layers=vllm_config.model_config.get_total_num_hidden_layers(),
        tensors_per_layer=2,
    )
    try:
        check_map_budget(needed)
    except LimitError as error:
        return str(error)
    return None


def _placement(vllm_config: Any, config: DwdpConfig) -> Placement:
    return Placement.make(
        num_experts=vllm_config.model_config.get_num_experts(),
        dwdp_size=dwdp_size(vllm_config, config),
        num_experts_per_worker=config.num_experts_per_worker,
        host_experts=config.given_host_experts,
    )


CHECKS: tuple[Check, ...] = (
    _platform,
    _expert_parallel,
    _inner_parallel,
    _model,
    _group_size,
    _host_experts,
    _ranks,
    _headless,
    _hosts_of_a_rank,
    _hosts_of_ray,
    _hosts_of_host_memory,
    _rendezvous,
    _in_process,
    _writers,
    _loader,
    _drafts,
    _num_slots,
    check_cpu,
    _environment,
    _map_budget,
)
