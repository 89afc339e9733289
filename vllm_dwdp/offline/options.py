# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks the options of vllm_dwdp.LLM in the caller; a rank would find mistakes much later."""

import dataclasses
import importlib.util
import inspect
from typing import Any

import vllm
from vllm import envs
from vllm.engine.arg_utils import EngineArgs

from vllm_dwdp.config import CONFIG_KEY, ConfigError, DwdpConfig
from vllm_dwdp.engine.setup.job_checks import reason_uneven
from vllm_dwdp.plugin import BACKEND_NAME, is_dwdp

BACKEND = "data_parallel_backend"
SET_PER_RANK = "data_parallel_"
"""How vLLM's options begin that say which rank an engine is; each rank sets them itself."""


def rank_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options for the vllm.LLM of every rank.

    Raises TypeError for an option that vLLM doesn't know, as vllm.LLM does. Raises ValueError for
    an option that only a single engine can have, or if VLLM_PLUGINS doesn't name dwdp.
    """
    _check_plugin()
    _check_known(options)
    kept = {name: value for name, value in options.items() if not name.startswith(SET_PER_RANK)}
    _check_placement(options)
    backend = kept.pop("distributed_executor_backend", None)
    if backend is not None and not is_dwdp(backend):
        raise ValueError(
            f"vllm_dwdp.LLM runs its ranks on the executor {BACKEND_NAME!r}, got "
            f"distributed_executor_backend={backend!r}; drop the option, or use vllm.LLM."
        )
    return {**kept, "distributed_executor_backend": BACKEND_NAME}


def check_at_least_one(**values: Any) -> None:
    """Raise TypeError for a value that isn't an int, such as True, and ValueError below 1."""
    for name, value in values.items():
        if type(value) is not int:
            raise TypeError(f"{name} must be an integer of at least 1, got {value!r}.")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def _check_plugin() -> None:
    allowed = envs.VLLM_PLUGINS
    if allowed is not None and BACKEND_NAME not in allowed:
        raise ValueError(
            f"vllm_dwdp.LLM is a plugin of vLLM: expected {BACKEND_NAME!r} among VLLM_PLUGINS, got "
            f"{','.join(allowed)!r}; add it, or unset the variable."
        )


def _check_known(options: dict[str, Any]) -> None:
    of_llm = inspect.signature(vllm.LLM).parameters
    of_engine = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in options:
        if name not in of_llm and name not in of_engine:
            raise TypeError(f"LLM.__init__() got an unexpected keyword argument {name!r}")


def is_by_ray(options: dict[str, Any]) -> bool:
    """Whether Ray places the ranks. Raises ImportError if it should, and isn't installed."""
    if options.get(BACKEND) != "ray":
        return False
    if importlib.util.find_spec("ray") is None:
        raise ImportError(
            "expected Ray for data_parallel_backend='ray', it is not installed; install it on "
            "every node: pip install 'vllm-dwdp[ray]'."
        )
    return True


def group_size_by_ray(job_size: int, options: dict[str, Any]) -> int:
    """The ranks of a group, which the options give as `dwdp_size`; else all ranks.

    Raises ConfigError for options that Ray's placement rules out.
    """
    config = DwdpConfig.parse((options.get("additional_config") or {}).get(CONFIG_KEY))
    if config.rendezvous:
        raise ConfigError(
            "the ranks of each Ray node meet on its loopback address, got dwdp.rendezvous="
            f"{config.rendezvous!r}; drop it."
        )
    size = config.dwdp_size or job_size
    if reason := reason_uneven(job_size, size):
        raise ConfigError(reason)
    return size


def _check_placement(options: dict[str, Any]) -> None:
    for field in dataclasses.fields(EngineArgs):
        if not field.name.startswith(SET_PER_RANK) or field.name not in options:
            continue
        if field.name == BACKEND and options[BACKEND] == "ray":
            continue
        if (value := options[field.name]) != field.default:
            raise ValueError(
                f"vllm_dwdp.LLM numbers and places its ranks itself, got {field.name}={value!r}; "
                "drop the option, or start one vllm.LLM per rank with VLLM_DP_* variables."
            )
