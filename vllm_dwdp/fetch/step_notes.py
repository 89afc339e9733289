# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a recorder notes while steps run, by the numbers of marks, and how these become times.

On a GPU a mark's time is known only once the GPU has passed it.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vllm_dwdp._core import CopySpan
from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.recording import LayerCopy, LayerRun, LayerWait

NO_SLOT = -1
UNKNOWN_LAYER = -1


class RunNote(NamedTuple):
    """A LayerRun with the numbers of marks in the place of times; -1 if a mark is missing."""

    step: int
    layer: int
    num_tokens: int
    mode: FetchMode
    is_hit: bool
    begin: int
    kernel: int
    kernel_end: int
    end: int

    @property
    def marks(self) -> tuple[int, int, int, int]:
        return self.begin, self.kernel, self.kernel_end, self.end


class WaitNote(NamedTuple):
    """A LayerWait with the numbers of marks in the place of times; -1 if a mark is missing.

    seconds: begin and end of the wait as it is counted, by time.perf_counter, if the calling thread
    waited; they are more exact than the marks around it.
    """

    step: int
    layer: int
    begin: int
    end: int
    seconds: tuple[float, float] | None


class StepNotes:
    """The notes of one recording. slot_of: returns the number of a layer's slot."""

    def __init__(self, slot_of: Callable[[int], int]) -> None:
        self.runs: list[RunNote] = []
        self.waits: list[WaitNote] = []
        self._slot_of = slot_of

    def timed_runs(self, marks_ns: Sequence[int]) -> tuple[LayerRun, ...]:
        """The runs, all of whose marks were passed; marks_ns: the time of each mark."""
        return tuple(self._timed(note, marks_ns) for note in self.runs if min(note.marks) >= 0)

    def timed_waits(self, marks_ns: Sequence[int]) -> tuple[LayerWait, ...]:
        """The waits, in the order of time."""
        return tuple(
            LayerWait(note.step, note.layer, *_times(note, marks_ns))
            for note in self.waits
            if min(note.begin, note.end) >= 0
        )

    def copies(
        self, spans: Sequence[CopySpan], waits: Sequence[LayerWait]
    ) -> tuple[LayerCopy, ...]:
        """The copies. Those of chosen experts name no layer, but run while their layer waits."""
        begins = [wait.begin_ns for wait in waits]
        return tuple(
            LayerCopy(
                span.ticket,
                span.layer if span.layer >= 0 else _layer_at(span.begin_ns, begins, waits),
                *(span.peer, span.num_bytes, span.num_copies),
                *(span.begin_ns, span.end_ns, span.busy_ns),
            )
            for span in spans
        )

    def _timed(self, note: RunNote, marks_ns: Sequence[int]) -> LayerRun:
        is_in_place = note.mode is FetchMode.DIRECT
        slot = NO_SLOT if is_in_place else self._slot_of(note.layer)
        times = (marks_ns[mark] for mark in note.marks)
        return LayerRun(*note[:3], note.mode.value, slot, note.is_hit, *times)


def _times(note: WaitNote, marks_ns: Sequence[int]) -> tuple[int, int]:
    if note.seconds is not None:
        return round(note.seconds[0] * 1e9), round(note.seconds[1] * 1e9)
    return marks_ns[note.begin], marks_ns[note.end]


def _layer_at(begin_ns: int, begins: Sequence[int], waits: Sequence[LayerWait]) -> int:
    index = bisect.bisect_right(begins, begin_ns) - 1
    is_inside = index >= 0 and begin_ns <= waits[index].end_ns
    return waits[index].layer if is_inside else UNKNOWN_LAYER
