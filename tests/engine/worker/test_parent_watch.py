# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Sleeping processes end with the process that started them, even if they ignore SIGTERM."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

FAMILY = Path(__file__).parents[1] / "watched_family.py"


def family(*arguments):
    """Start watched_family.py; returns its processes once they watch their parents."""
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
