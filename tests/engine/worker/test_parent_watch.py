# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Processes that would sleep on, and ignore SIGTERM, end with the one that started them."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

FAMILY = Path(__file__).parents[1] / "watched_family.py"


def family(*arguments):
    """Front-end, engine and worker, once each of them watches."""
    command = [sys.executable, FAMILY, *arguments]
    front_end = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return [psutil.Process(int(pid)) for pid in front_end.stdout.readline().split()]


@pytest.mark.parametrize(("killed", "arguments"), [(0, ()), (1, ()), (0, ("early",))])
def test_what_a_killed_process_started_ends(killed, arguments):
    processes = family(*arguments)
    processes[killed].kill()
    left = psutil.wait_procs(processes[killed + 1 :], timeout=10)[1]
    for process in processes:
        if process.is_running():
            process.kill()
    assert left == []
