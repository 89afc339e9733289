# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Tries in this process what every vLLM process does at its start: load plugins, find dwdp.

To be run in a process of its own, since it imports vLLM and changes it as the plugin does.
"""

import importlib
from typing import Any

from vllm import envs
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins
from vllm.v1.executor.abstract import Executor

from vllm_dwdp.engine.setup import cpu_checks, environment, model_checks

WORKERS = {"cpu": "cpu", "cuda": "gpu"}
"""By vLLM's type of device, the module of dwdp's worker."""


def look_at_vllm() -> dict[str, Any]:
    """What vLLM is with its plugins loaded.

    device: vLLM's type of device. is_registered: whether vLLM finds the executor `dwdp`.
    unsupported: why dwdp can't run on that device. unreadable: a sentence about a variable of the
    environment that vLLM can't use. Both are None if there is nothing to say. cache_root: the
    folder of vLLM's caches. Raises whatever the import of dwdp's executor or worker raises.
    """
    load_general_plugins()
    device = current_platform.device_type
    unsupported = model_checks.reason_unsupported(device)
    importlib.import_module("vllm_dwdp.engine.worker.executor")
    if not unsupported:
        importlib.import_module(f"vllm_dwdp.engine.worker.{WORKERS[device]}")
    of_cpu = cpu_checks.check_environment() if device == "cpu" else None
    return {
        "device": device,
        "is_registered": getattr(Executor.get_class, "knows_dwdp", False),
        "unsupported": unsupported,
        "unreadable": environment.reason_unreadable() or of_cpu,
        "cache_root": envs.VLLM_CACHE_ROOT,
    }
