# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Finds what these tests must not leave behind: memory files, directories, processes.

Other jobs may begin and end on this machine at any time. So all processes of the tests have a mark
in their environment, and put their temporary files into a directory of the tests' own.
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
    """Mark all processes that start in the `with` block, and give them a temporary directory."""
    folder = tempfile.mkdtemp(prefix="dwdp-tests-")
    os.environ.update({MARK: uuid.uuid4().hex, KEEP_ENVIRON: "1", "TMPDIR": folder})
    yield
    shutil.rmtree(folder, ignore_errors=True)


def processes() -> list[psutil.Process]:
    """Processes that the tests started and that still run, even if their parent has ended.

    The fork server from which tests/group starts its ranks isn't one: it lives as long as pytest.
    """
    marked = [process for process in psutil.process_iter() if _is_marked(process)]
    return [process for process in marked if "multiprocessing.forkserver" not in _command(process)]


def memory_files() -> set[str]:
    """Memory files of dwdp ranks that processes of these tests have open or map."""
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


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""  # the process has ended since


def _is_marked(process: psutil.Process) -> bool:
    try:
        return process.environ().get(MARK) == os.environ[MARK]
    except (psutil.Error, OSError):
        return False
