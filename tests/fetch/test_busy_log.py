# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The log of each minute says how much the counters grew; it is silent while no step runs."""

import logging
import random
import time

from simulation import Simulation
from support.log_lines import log_lines

from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.busy_log import BusyLog


def test_line_says_what_grew_since_the_last():
    simulated = Simulation(4, 2, random.Random(0))
    log = BusyLog(simulated.counters)
    assert log.line() is None
    simulated.step(FetchMode.PREFETCH)
    simulated.step(FetchMode.DIRECT)
    assert log.line().startswith(
        "1 direct, 1 prefetch steps, 2 tokens; fetched 0.0 MiB prefetch, 0.0 MiB selective; "
        "2 prefetches were begun before their layer asked, 2 were not; layers waited 0."
    )
    assert log.line() is None
    simulated.step(FetchMode.PREFETCH)
    assert log.line().startswith("1 prefetch steps, 1 tokens; ")


def test_thread_logs_while_steps_run():
    simulated = Simulation(4, 2, random.Random(0))
    with log_lines(logging.INFO) as lines:
        BusyLog(simulated.counters).start(interval_s=0.01)
        time.sleep(0.1)
        assert lines == []
        simulated.step(FetchMode.DIRECT)
        deadline = time.monotonic() + 10
        while not lines:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.1)
    (line,) = lines
    assert line.startswith("DWDP, last 0 s: 1 direct steps, 1 tokens")
