# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Spans as events of the Trace Event Format, which Perfetto and chrome://tracing open, and back.

A rank is a process of the trace. Its threads are steps, compute, waits, and the copies from each
place. Spans of one thread don't overlap: copies that run at the same time take several threads.
Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vllm_dwdp.trace.span import Kind, Span

Event = dict[str, Any]

THREADS = {Kind.STEP: "steps", Kind.KERNEL: "compute", Kind.BETWEEN: "compute", Kind.WAIT: "waits"}


def events_of(spans: Sequence[Span], names: dict[int, str]) -> list[Event]:
    """The events of all spans, after those that name processes and threads. names: of the ranks."""
    threads = _Threads()
    complete = [_complete(span, threads.number(span)) for span in spans]
    of_ranks = [event for rank, name in names.items() for event in _of_process(rank, name)]
    return [*of_ranks, *threads.events(), *complete]


def spans_in(events: Iterable[Event]) -> list[Span]:
    """The spans of the complete events. Raises KeyError or ValueError for events of others."""
    return [_span(event) for event in events if event["ph"] == "X"]


class _Threads:
    """Numbers the threads of each rank, and finds one in which a span overlaps no other."""

    def __init__(self) -> None:
        self._names: dict[tuple[int, str, int], int] = {}
        self._busy_until: dict[tuple[int, str, int], float] = {}

    def number(self, span: Span) -> int:
        name = THREADS.get(span.kind) or f"copies from {span.args['peer']}"
        lane = 0
        while self._busy_until.get(key := (span.rank, name, lane), span.begin_us) > span.begin_us:
            lane += 1
        self._busy_until[key] = span.end_us
        return self._names.setdefault(key, len(self._names) + 1)

    def events(self) -> Iterator[Event]:
        order = [*dict.fromkeys(THREADS.values())]
        for (rank, name, lane), number in self._names.items():
            shown = name if lane == 0 else f"{name} ({lane + 1})"
            place = order.index(name) if name in order else len(order) + number
            yield _metadata("thread_name", rank, number, {"name": shown})
            yield _metadata("thread_sort_index", rank, number, {"sort_index": place})


def _of_process(rank: int, name: str) -> Iterator[Event]:
    yield _metadata("process_name", rank, 0, {"name": name})
    yield _metadata("process_sort_index", rank, 0, {"sort_index": rank})


def _metadata(name: str, rank: int, thread: int, args: dict[str, Any]) -> Event:
    return {"ph": "M", "name": name, "pid": rank, "tid": thread, "args": args}


def _complete(span: Span, thread: int) -> Event:
    return {
        "ph": "X",
        "name": span.name,
        "cat": span.kind.value,
        "pid": span.rank,
        "tid": thread,
        "ts": span.begin_us,
        "dur": round(span.us, 3),
        "args": span.args,
    }


def _span(event: Event) -> Span:
    begin, duration = float(event["ts"]), float(event["dur"])
    kind, args = Kind(event["cat"]), dict(event["args"])
    return Span(int(event["pid"]), kind, str(event["name"]), begin, begin + duration, args)
