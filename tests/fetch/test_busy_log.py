# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The line a minute says what grew since the last one, and nothing while nothing runs."""

import logging
import random
import time

from simulation import Simulation

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


def test_thread_logs_while_steps_run(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.INFO, logger="vllm.dwdp")
    simulated = Simulation(4, 2, random.Random(0))
    BusyLog(simulated.counters).start(interval_s=0.01)
    time.sleep(0.1)
    assert caplog.text == ""
    simulated.step(FetchMode.DIRECT)
    deadline = time.monotonic() + 10
    while "1 direct steps, 1 tokens" not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.01)
    assert caplog.text.count("DWDP, last") == 1
