# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Records some steps: stands between the layers and the scheduler, and notes when what happened.

* While nothing is recorded, no recorder stands there: layers call the scheduler itself.
* Times are marks of the copier. On a CPU a mark is the present, on a GPU an event in the stream.
* The thread that runs the model calls all methods. A step ends when the next one begins or when the
  recording is taken, which happens between steps.
* Lists of copies that are submitted in the recorded steps are recorded to their end, even if that
  comes later. So their bytes are those that the counters count in these steps.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

from vllm_dwdp._core import CopyRecording
from vllm_dwdp.config import FetchMode
from vllm_dwdp.device.waits import Waits
from vllm_dwdp.fetch.base import ChosenIds, Fetcher
from vllm_dwdp.fetch.recording import StepRecording, growth
from vllm_dwdp.fetch.scheduler import FetchScheduler
from vllm_dwdp.fetch.step_notes import RunNote, StepNotes, WaitNote

MAX_RUNS = 50_000
"""Runs of layers that a recording holds, over all steps. They take about 20 MB."""

MAX_SPANS = 100_000
"""Copies that a recording holds. They take 6 MB; long lists of slices share entries."""

MARKS_PER_RUN = 12
"""More marks than a run takes, whatever its layer waits for."""


class RecordingCopier(Protocol):
    """What the recorder calls of `vllm_dwdp._core.Copier`."""

    def start_recording(self, *, max_marks: int, max_spans: int) -> None: ...
    def mark(self, stream: int = 0) -> int: ...
    def end_recording(self) -> None: ...
    def take_recording(self) -> CopyRecording: ...


class StepRecorder:
    """A fetcher that passes all calls on to the scheduler, and notes them.

    install: has all layers call a fetcher from now on. counts: returns the rank's counters.
    """

    def __init__(
        self,
        scheduler: FetchScheduler,
        copier: RecordingCopier,
        *,
        install: Callable[[Fetcher], None],
        counts: Callable[[], dict[str, Any]],
        wanted_steps: int,
    ) -> None:
        self.wanted_steps = wanted_steps
        self.num_steps = 0
        self.is_over = False
        self._scheduler = scheduler
        self._copier = copier
        self._install = install
        self._counts = counts
        self._notes = StepNotes(scheduler.slot_of)
        self._open: tuple[int, int, int, FetchMode, bool, int, int] | None = None
        self._stock_waits = scheduler.waits

    def start(self) -> None:
        """Record from the next step on."""
        self._copier.start_recording(max_marks=MARKS_PER_RUN * MAX_RUNS, max_spans=MAX_SPANS)
        self._wall_ns, self._clock_ns = time.time_ns(), time.perf_counter_ns()
        self._before = self._after = self._counts()
        self._scheduler.waits = NotedWaits(self._stock_waits, self)
        self._install(self)

    def wait(self, layer: int, num_tokens: int, chosen: ChosenIds | None = None) -> FetchMode:
        if layer == 0:
            self._begin_step()
        if self.is_over or not self.num_steps:
            return self._scheduler.wait(layer, num_tokens, chosen)
        hits = self._scheduler.counters.hits
        begin = self.mark()
        mode = self._scheduler.wait(layer, num_tokens, chosen)
        is_hit = self._scheduler.counters.hits != hits
        self._open = (self.num_steps - 1, layer, num_tokens, mode, is_hit, begin, self.mark())
        return mode

    def release(self, layer: int, mode: FetchMode) -> None:
        if self._open is None:
            return self._scheduler.release(layer, mode)
        kernel_end = self.mark()
        self._scheduler.release(layer, mode)
        self._notes.runs.append(RunNote(*self._open, kernel_end, self.mark()))
        self._open = None

    def mark(self) -> int:
        """Mark the point that the layers' stream has reached; returns the mark's number."""
        return self._copier.mark(self._scheduler.stream)

    def note_wait(self, layer: int, begin: int, end: int) -> None:
        """Note a wait between two marks, of the layer that runs now."""
        seconds = self._stock_waits.last()
        self._notes.waits.append(WaitNote(self.num_steps - 1, layer, begin, end, seconds))

    def end(self) -> None:
        """Record nothing more; layers call the scheduler itself again."""
        if self.is_over:
            return
        self.is_over = True
        self._copier.end_recording()
        self._scheduler.waits = self._stock_waits
        self._after = self._counts()
        self._install(self._scheduler)

    def take(self) -> StepRecording:
        """End the recording, wait for its copies, and return it. To be called once."""
        self.end()
        noted = self._copier.take_recording()
        waits = self._notes.timed_waits(noted.marks_ns)
        return StepRecording(
            num_steps=self.num_steps,
            wanted_steps=self.wanted_steps,
            wall_ns=self._wall_ns,
            clock_ns=self._clock_ns,
            runs=self._notes.timed_runs(noted.marks_ns),
            waits=waits,
            copies=self._notes.copies(noted.copies, waits),
            num_dropped_bytes=noted.num_dropped_bytes,
            counts=growth(self._before, self._after),
        )

    def _begin_step(self) -> None:
        if self.num_steps == self.wanted_steps or len(self._notes.runs) >= MAX_RUNS:
            self.end()
        elif not self.is_over:
            self.num_steps += 1


class NotedWaits:
    """Stands in the place of the scheduler's waits while a recorder records."""

    def __init__(self, stock: Waits, recorder: StepRecorder) -> None:
        self._stock = stock
        self._recorder = recorder
        self._begin = 0

    def begin(self, step: int) -> None:
        self._begin = self._recorder.mark()
        self._stock.begin(step)

    def end(self, layer: int) -> None:
        self._stock.end(layer)
        self._recorder.note_wait(layer, self._begin, self._recorder.mark())

    def last(self) -> tuple[float, float] | None:
        return self._stock.last()
