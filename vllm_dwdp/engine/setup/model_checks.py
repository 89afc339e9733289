# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks that refuse models, kernels and options of vLLM that can't work with shared experts.

Each check returns the sentence that refuses a configuration, or None.
"""

from typing import Any

import torch

from vllm_dwdp.config import AUTO, ConfigError, DwdpConfig, usable_slots
from vllm_dwdp.device import memory_kind
from vllm_dwdp.engine.compat import wants_fault_tolerance
from vllm_dwdp.engine.setup.job_checks import placement_of
from vllm_dwdp.memory.limits import LimitError, check_map_budget, num_maps_at_least

LOAD_FORMATS = ("auto", "hf", "safetensors", "mistral", "pt", "npcache", "dummy")

_WEIGHTS, _WEIGHTS_AND_SCALES, _WITH_ZERO_POINTS = 2, 4, 6
MAPPED_TENSORS = {
    **dict.fromkeys(("mxfp4", "gpt_oss_mxfp4"), _WEIGHTS_AND_SCALES),
    **dict.fromkeys(("awq", "auto_awq", "awq_marlin", "moe_wna16"), _WITH_ZERO_POINTS),
    **dict.fromkeys(("gptq", "auto_gptq", "gptq_marlin"), _WITH_ZERO_POINTS),
}
"""How many expert tensors of a layer are mapped in all but small models, by vLLM's method.

Of the methods that are not listed, and without one, only the two weights are certain: scales may be
so small that every rank keeps all of them in private pages, see TensorLayout.is_kept_whole.
"""


def platform(vllm_config: Any, config: DwdpConfig) -> str | None:
    reason = reason_unsupported(vllm_config.device_config.device_type)
    return f"{reason}; drop the option." if reason else None


def reason_unsupported(device_type: str) -> str | None:
    """Why dwdp can't run on vLLM's devices of this type; None if it can."""
    if device_type == "cpu" or (device_type == "cuda" and torch.version.hip is None):
        return None
    return f"dwdp runs on CPUs and NVIDIA's GPUs, this is '{device_type}'"


def moe_model(vllm_config: Any, config: DwdpConfig) -> str | None:
    model = vllm_config.model_config
    if model is None or model.get_num_experts() < 1:
        name = getattr(model, "model", None)
        return f"dwdp serves Mixture-of-Experts models, {name!r} has no experts; drop the option."
    if model.enable_sleep_mode:
        return "dwdp can't sleep: peers read the experts of this rank; drop --enable-sleep-mode."
    if model.enable_cumem_allocator:
        return (
            "dwdp frees loaded weights once they are shared, vLLM's own allocator would keep their "
            "memory; drop --enable-cumem-allocator."
        )
    return None


def expert_parallel(vllm_config: Any, config: DwdpConfig) -> str | None:
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


def inner_parallel(vllm_config: Any, config: DwdpConfig) -> str | None:
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


def host_experts(vllm_config: Any, config: DwdpConfig) -> str | None:
    if config.host_experts and memory_kind(vllm_config.device_config.device_type) == "host":
        return (
            f"dwdp.host_experts is for ranks on GPUs, got {config.host_experts} for ranks on CPUs, "
            "all of whose memory is the host's; leave it out."
        )
    quantization = vllm_config.model_config.quantization
    if config.host_experts and quantization not in (None, "fp8"):
        return (
            f"dwdp.host_experts is for unquantised and FP8 models, got quantization method "
            f"'{quantization}', which was not tried with it; leave it out."
        )
    if config.host_experts == AUTO and vllm_config.load_config.load_format == "dummy":
        return (
            "dwdp.host_experts 'auto' needs weights that are loaded, got --load-format dummy; give "
            "a number."
        )
    return None


def writers(vllm_config: Any, config: DwdpConfig) -> str | None:
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


def load_format(vllm_config: Any, config: DwdpConfig) -> str | None:
    load_format = str(vllm_config.load_config.load_format)
    if load_format not in LOAD_FORMATS:
        return (
            f"dwdp doesn't support load format '{load_format}', with which a rank can't read only "
            f"its own experts; use one of {', '.join(LOAD_FORMATS)}."
        )
    return None


def num_slots(vllm_config: Any, config: DwdpConfig) -> str | None:
    """Count every hidden layer as a MoE layer: MoE layers are known only once they are built."""
    num_layers = vllm_config.model_config.get_total_num_hidden_layers()
    try:
        usable_slots(config.num_slots, num_layers or config.num_slots, of="layers")
    except ConfigError as error:
        return str(error)
    return None


def map_budget(vllm_config: Any, config: DwdpConfig) -> str | None:
    """Refuse a job that needs more mappings than the kernel allows, as far as is known by now.

    Every hidden layer counts as a MoE layer, whose experts fill whole pages. When the layers are
    loaded, the worker counts what they really have, see check_kernel_limits.
    """
    if vllm_config.device_config.device_type != "cpu":
        return None  # a GPU's mappings are not the process's
    model = vllm_config.model_config
    needed = num_maps_at_least(
        placement_of(vllm_config, config),
        num_layers=model.get_total_num_hidden_layers(),
        tensors_per_layer=MAPPED_TENSORS.get(model.quantization, _WEIGHTS),
    )
    try:
        check_map_budget(needed)
    except LimitError as error:
        return str(error)
    return None
