# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A process that takes half of one core while it lives, whatever runs beside it."""

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
    """The process as others see it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = psutil.Process(process.pid)
        self._began_s = time.monotonic()

    def share(self) -> float:
        """Of one core, what the kernel has given the process since its start."""
        times = self._process.cpu_times()
        return (times.user + times.system) / (time.monotonic() - self._began_s)


@contextlib.contextmanager
def disturbance() -> Iterator[Disturbance]:
    """Starts the process; it ends with the block."""
    with subprocess.Popen([sys.executable, __file__]) as process:
        try:
            yield Disturbance(process)
        finally:
            process.kill()


def take_half() -> None:
    """Spin for BUSY_S of CPU time in each PERIOD_S of wall time, or for less if others spin, too.

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
