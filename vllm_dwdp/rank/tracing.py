# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The recordings of one rank, which are started and taken while it serves."""

import threading
from collections.abc import Callable
from typing import Any

from vllm_dwdp.fetch.base import Fetcher
from vllm_dwdp.fetch.recorder import MAX_RUNS, RecordingCopier, StepRecorder
from vllm_dwdp.fetch.recording import StepRecording
from vllm_dwdp.fetch.scheduler import FetchScheduler


class Tracing:
    """Starts and takes recordings, one at a time.

    The thread that runs the model calls `start` and `take`, between steps; any thread may ask for
    `num_steps`. install, counts: see StepRecorder.
    """

    def __init__(
        self,
        scheduler: FetchScheduler,
        copier: RecordingCopier,
        *,
        num_layers: int,
        install: Callable[[Fetcher], None],
        counts: Callable[[], dict[str, Any]],
    ) -> None:
        self._scheduler = scheduler
        self._copier = copier
        self._max_steps = max(1, MAX_RUNS // max(1, num_layers))
        self._install = install
        self._counts = counts
        self._lock = threading.Lock()
        self._recorder: StepRecorder | None = None

    @property
    def num_steps(self) -> int:
        """Steps recorded so far; 0 if nothing is recorded."""
        with self._lock:
            return 0 if self._recorder is None else self._recorder.num_steps

    def start(self, num_steps: int) -> None:
        """Record so many steps, from the next one on. A recording that wasn't taken is dropped.

        Raises ValueError for fewer than one step, and for more than a recording holds.
        """
        if not 1 <= num_steps <= self._max_steps:
            raise ValueError(
                f"expected 1 to {self._max_steps} steps to record, got {num_steps}; record fewer."
            )
        with self._lock:
            if self._recorder is not None:
                self._recorder.end()
            self._recorder = None
            recorder = self._make_recorder(num_steps)
            recorder.start()
            self._recorder = recorder

    def take(self) -> StepRecording:
        """End the recording, even if fewer steps have run than were asked for, and return it.

        Raises RuntimeError if nothing was recorded since the last call.
        """
        with self._lock:
            recorder, self._recorder = self._recorder, None
        if recorder is None:
            raise RuntimeError("expected a recording that was started, got none; start one first.")
        return recorder.take()

    def _make_recorder(self, num_steps: int) -> StepRecorder:
        return StepRecorder(
            self._scheduler,
            self._copier,
            install=self._install,
            counts=self._counts,
            wanted_steps=num_steps,
        )
