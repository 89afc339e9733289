# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Tries to use half of one core, whatever else runs there: `python core.py CORE`."""

import os
import sys
import time

PERIOD_S = 0.02
BUSY_S = 0.01


def take_half(core: int) -> None:
    """Use BUSY_S of CPU time in each PERIOD_S of wall time, or less if the core is busy.

    Runs until the process is killed.
    """
    os.sched_setaffinity(0, {core})
    print("ready", flush=True)
    end_s = time.monotonic()
    while True:
        end_s = max(end_s, time.monotonic() - PERIOD_S) + PERIOD_S
        stop_s = time.process_time() + BUSY_S
        while time.process_time() < stop_s and time.monotonic() < end_s:
            pass
        time.sleep(max(0.0, end_s - time.monotonic()))


if __name__ == "__main__":
    take_half(int(sys.argv[1]))
