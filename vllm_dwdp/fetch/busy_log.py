# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Logs once a minute how much was fetched, if steps have run."""

import logging
import threading

from vllm_dwdp.fetch.counters import FetchCounters

logger = logging.getLogger("vllm.dwdp")
INTERVAL_S = 60.0


class BusyLog:
    """Logs how much the counters have grown since the last line."""

    def __init__(self, counters: FetchCounters) -> None:
        self._counters = counters
        self._last = counters.snapshot()

    def start(self, interval_s: float = INTERVAL_S) -> None:
        """Log from a thread of its own, until the process ends."""
        thread = threading.Thread(
            target=self._run, args=(interval_s,), name="dwdp-busy-log", daemon=True
        )
        thread.start()

    def line(self) -> str | None:
        """What was counted since the last call; None if no step has run since."""
        before, now = self._last, self._counters.snapshot()
        self._last = now
        steps = {mode: count - before["steps"][mode] for mode, count in now["steps"].items()}
        if not any(steps.values()):
            return None
        by_mode = ", ".join(f"{count} {mode}" for mode, count in steps.items() if count)
        fetched = ", ".join(
            f"{(sum(peers) - sum(before['bytes_fetched'][mode])) / 2**20:.1f} MiB {mode}"
            for mode, peers in now["bytes_fetched"].items()
        )
        waited = sum(now["exposed_seconds"]) - sum(before["exposed_seconds"])
        return (
            f"{by_mode} steps, {now['tokens'][0] - before['tokens'][0]} tokens; fetched {fetched}; "
            f"{now['hits'] - before['hits']} prefetches were begun before their layer asked, "
            f"{now['misses'] - before['misses']} were not; layers waited {waited:.2f} s"
        )

    def _run(self, interval_s: float) -> None:
        never = threading.Event()
        while not never.wait(interval_s):
            if line := self.line():
                logger.info("DWDP, last %.0f s: %s", interval_s, line)
