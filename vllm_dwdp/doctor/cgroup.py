# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Limits of this process's control groups, in versions 1 and 2 of cgroups.

A process is under the limits of its own group and of all groups above it, as far as they are
mounted here.
"""

from collections.abc import Iterator
from pathlib import Path

from vllm_dwdp.doctor.host import Host

UNLIMITED_BYTES = 1 << 60
"""Version 1 has no word for 'no limit', but a number above this."""


def memory_limit_bytes(host: Host) -> int | None:
    """The least limit on memory; None if there is none or the groups aren't mounted."""
    names = ("memory.max", "memory.limit_in_bytes")
    given = (_number(folder / name) for folder in _folders(host, "memory") for name in names)
    return min((n for n in given if n is not None and n < UNLIMITED_BYTES), default=None)


def num_cpus_limit(host: Host) -> float | None:
    """The least quota of CPU time, as a number of CPUs; None as above."""
    return min(filter(None, map(_quota, _folders(host, "cpu"))), default=None)


def _quota(folder: Path) -> float | None:
    """A group's quota: 'QUOTA PERIOD' in one file, or in two files, in microseconds."""
    quota, _, period = (_text(folder / "cpu.max") or "").partition(" ")
    quota = quota or _text(folder / "cpu.cfs_quota_us") or ""
    period = period or _text(folder / "cpu.cfs_period_us") or ""
    if not (quota.isdecimal() and period.isdecimal()):
        return None  # 'max' and -1 stand for no quota
    return int(quota) / int(period)


def _folders(host: Host, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of those above it, for one controller."""
    for line in (host.read("/proc/self/cgroup") or "").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for top, mounted in _mounts(host, controllers):
            inside = Path(group).relative_to(top) if Path(group).is_relative_to(top) else Path()
            folder = host.path(mounted) / inside
            yield from (folder, *list(folder.parents)[: len(inside.parts)])


def _mounts(host: Host, controllers: str) -> Iterator[tuple[str, str]]:
    """(topmost group, folder) of each mount; controllers: '' for version 2."""
    for line in (host.read("/proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        is_v1 = kind == "cgroup" and set(controllers.split(",")) <= set(options.split(","))
        if (kind == "cgroup2") if not controllers else is_v1:
            _, _, _, top, folder, *_ = before.split(" ")
            yield top, folder


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.isdecimal() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
