# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The versions at the head of a report."""

import platform
from collections.abc import Callable

from vllm_dwdp.doctor.groups.packages import OWN, version_of
from vllm_dwdp.engine import compat

NONE = "not installed"


def versions() -> dict[str, str]:
    """By name, what is installed and what it runs on. Never raises."""
    return {
        OWN: _safely(lambda: version_of(OWN)),
        "vllm": _safely(compat.installed_version),
        "torch": _safely(lambda: version_of("torch")),
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        "os": _safely(lambda: platform.freedesktop_os_release()["PRETTY_NAME"], "unknown"),
        "machine": platform.machine(),
    }


def _safely(read: Callable[[], str | None], without: str = NONE) -> str:
    try:
        return read() or without
    except Exception:
        return without
