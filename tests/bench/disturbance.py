# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A process that tries to use half of one core, whatever else runs there."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil

CORE = 0
PERIOD_S = 0.02
BUSY_S = 0.01


class Disturbance:
    """The running process, as the benchmark sees it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = psutil.Process(process.pid)
        self._began_s = time.monotonic()

    def share(self) -> float:
        """The share of one core that the process has used since its start."""
        times = self._process.cpu_times()
        return (times.user + times.system) / (time.monotonic() - self._began_s)


@contextlib.contextmanager
def disturbance() -> Iterator[Disturbance]:
    """Run the process until the `with` block ends."""
    with subprocess.Popen([sys.executable, __file__]) as process:
        try:
            yield Disturbance(process)
        finally:
            process.kill()


def take_half() -> None:
    """Use BUSY_S of CPU time in each PERIOD_S of wall time, or less if the core is busy.

    Runs until the process is killed.
    """
    os.sched_setaffinity(0, {CORE})
    end_s = time.monotonic()
    while True:
        end_s = max(end_s, time.monotonic() - PERIOD_S) + PERIOD_S
        stop_s = time.process_time() + BUSY_S
        while time.process_time() < stop_s and time.monotonic() < end_s:
            pass
        time.sleep(max(0.0, end_s - time.monotonic()))


if __name__ == "__main__":
    take_half()
