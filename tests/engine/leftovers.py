# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a job must not leave: memory files, directories, sockets, processes."""

from pathlib import Path

import psutil

from vllm_dwdp.group.private_directory import PREFIX, socket_parent


def memory_files() -> set[str]:
    """Open or mapped memory files of dwdp ranks, over all processes that may be looked at."""
    found = set()
    for process in psutil.process_iter():
        try:
            maps = {m.path for m in process.memory_maps()}
            links = {str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()}
        except (psutil.Error, OSError):
            continue
        found |= {f"{process.pid}: {name}" for name in maps | links if "memfd:dwdp-" in name}
    return found


def directories() -> set[Path]:
    return set(Path(socket_parent()).glob(f"{PREFIX}*"))


OTHERS = memory_files() | {str(path) for path in directories()}
"""What was there before the tests began."""


def of_these_tests() -> set[str]:
    return (memory_files() | {str(path) for path in directories()}) - OTHERS
