# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What these tests must not leave: memory files, directories, processes.

Other jobs may run on the machine, and begin and end at any time. What the tests start is known by
a mark in its environment, and puts its temporary files into a directory of the tests' own.
"""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

from vllm_dwdp.group.handover.descriptor.private_directory import PREFIX

MARK = "DWDP_TESTS"
KEEP_ENVIRON = "SPT_NOENV"
"""Tells `setproctitle`, by which vLLM names its processes, to leave /proc/PID/environ alone."""


@contextlib.contextmanager
def marking() -> Iterator[None]:
    """Mark all that is started from here on, and give it a directory for temporary files."""
    folder = tempfile.mkdtemp(prefix="dwdp-tests-")
    os.environ.update({MARK: uuid.uuid4().hex, KEEP_ENVIRON: "1", "TMPDIR": folder})
    yield
    shutil.rmtree(folder, ignore_errors=True)


def processes() -> list[psutil.Process]:
    """All that the tests started and that still run, whoever is their parent by now."""
    return [process for process in psutil.process_iter() if _is_marked(process)]


def memory_files() -> set[str]:
    """Memory files of dwdp ranks that processes of these tests hold open or map."""
    found = set()
    for process in processes():
        try:
            maps = {m.path for m in process.memory_maps()}
            links = {str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()}
        except (psutil.Error, OSError):
            continue
        found |= {f"{process.pid}: {name}" for name in maps | links if "memfd:dwdp-" in name}
    return found


def directories() -> set[str]:
    return {str(path) for path in Path(os.environ["TMPDIR"]).glob(f"{PREFIX}*")}


def of_these_tests() -> set[str]:
    return memory_files() | directories()


def _is_marked(process: psutil.Process) -> bool:
    try:
        return process.environ().get(MARK) == os.environ[MARK]
    except (psutil.Error, OSError):
        return False
