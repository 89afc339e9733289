# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Packages that some forms of serving need."""

import importlib.metadata
import re

from vllm_dwdp.doctor.check import Group, check
from vllm_dwdp.doctor.child import ProbeError
from vllm_dwdp.doctor.finding import Case, Finding, Status, ok
from vllm_dwdp.doctor.host import Host

OWN = "vllm-dwdp"


def version_of(package: str) -> str | None:
    """The installed version; None without the package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def least_version(package: str) -> str:
    """The least version of an optional package that this package names; "0" if it names none."""
    wanted = re.compile(rf"{re.escape(package)}(?:\[\w+\])?\s*>=\s*([\d.]+)")
    named = [
        match[1] for line in importlib.metadata.requires(OWN) or () if (match := wanted.match(line))
    ]
    return min(named, key=_numbers, default="0")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


NO_RAY = Case(
    Status.NOT_HERE,
    "it isn't installed",
    "Install it to place ranks by Ray: pip install 'ray>=2.48'. Nothing else needs it.",
)
OLD_RAY = Case(
    Status.WARN,
    "it is older than the version that was tried",
    "Update it before you use --data-parallel-backend ray: pip install 'ray>={least}'.",
)


@check("Ray", "the version, for --data-parallel-backend ray", *(NO_RAY, OLD_RAY))
def ray(host: Host) -> Finding:
    version, least = version_of("ray"), least_version("ray")
    if version is None:
        return NO_RAY.found("not installed")
    if _numbers(version) < _numbers(least):
        return OLD_RAY.found(f"{version}, expected {least} or later", least=least)
    return ok(version)


NO_NIXL = Case(
    Status.NOT_HERE,
    "it isn't installed",
    "Install it for servers that prefill for others: pip install nixl. Nothing else needs it.",
)
BROKEN_NIXL = Case(
    Status.WARN,
    "it is installed and can't be imported",
    "Install NIXL again, for the CUDA of this PyTorch; `python -c 'import nixl._api'` shows the "
    "error.",
)


@check(
    "NIXL",
    "the version, and whether it can be imported, for disaggregated prefill",
    *(NO_NIXL, BROKEN_NIXL),
)
def nixl(host: Host) -> Finding:
    version = version_of("nixl")
    if version is None:
        return NO_NIXL.found("not installed")
    try:
        host.ask("nixl")
    except ProbeError as error:
        return BROKEN_NIXL.found(f"{version}: {error}")
    return ok(version)


GROUP = Group("Other packages", (ray, nixl))
