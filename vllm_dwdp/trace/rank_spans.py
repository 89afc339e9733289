# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Turns the recordings of ranks into spans on one timeline.

The ranks of one host share a clock. Ranks of several hosts are put on one timeline by their hosts'
wall clocks, so they are as far off as these are.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vllm_dwdp.fetch.recording import LayerCopy, LayerRun, LayerWait
from vllm_dwdp.trace.span import Kind, Span

Recording = dict[str, Any]
"""What `dwdp_trace` of a rank's worker returns, see engine/worker/base.py."""


def spans_of(recordings: Sequence[Recording]) -> list[Span]:
    """The spans of all ranks, in the order of time; the first one begins at 0."""
    zero_of_host = _zeros(recordings)
    spans = [
        span
        for recording in recordings
        for span in _RankSpans(recording, zero_of_host[recording["host"]]).all()
    ]
    start = min((span.begin_us for span in spans), default=0.0)
    return sorted((_moved(span, -start) for span in spans), key=lambda span: span.begin_us)


def _zeros(recordings: Iterable[Recording]) -> dict[str, int]:
    """By host, the monotonic time (ns) of one moment that is the same for all hosts."""
    zeros: dict[str, int] = {}
    wall_ns = None
    for one in recordings:
        wall_ns = one["wall_ns"] if wall_ns is None else wall_ns
        zeros.setdefault(one["host"], one["clock_ns"] - (one["wall_ns"] - wall_ns))
    return zeros


def _moved(span: Span, by_us: float) -> Span:
    times = round(span.begin_us + by_us, 3), round(span.end_us + by_us, 3)
    return Span(span.rank, span.kind, span.name, *times, span.args)


class _RankSpans:
    """The spans of one rank. zero_ns: the monotonic time of its host at the time 0."""

    def __init__(self, recording: Recording, zero_ns: int) -> None:
        self._rank = recording["rank"]
        self._job_ranks = recording["job_ranks"]
        self._dwdp_rank = recording["dwdp_rank"]
        self._zero_ns = zero_ns
        self._runs = [LayerRun(*run) for run in recording["runs"]]
        self._waits = [LayerWait(*wait) for wait in recording["waits"]]
        self._copies = [LayerCopy(*copy) for copy in recording["copies"]]

    def all(self) -> Iterator[Span]:
        for _, runs in itertools.groupby(self._runs, key=lambda run: run.step):
            yield from self._of_step(list(runs))
        for wait in self._waits:
            name = f"wait for layer {wait.layer}"
            args = {"layer": wait.layer, "step": wait.step}
            yield self._span(Kind.WAIT, name, wait.begin_ns, wait.end_ns, args)
        yield from map(self._of_copy, self._copies)

    def _of_step(self, runs: list[LayerRun]) -> Iterator[Span]:
        step = runs[0].step
        args = {"step": step, "tokens": runs[0].num_tokens, "mode": runs[0].mode}
        yield self._span(Kind.STEP, f"step {step}", runs[0].begin_ns, runs[-1].end_ns, args)
        for run in runs:
            yield self._of_kernel(run)
        for run, following in itertools.pairwise(runs):
            args = {"step": step, "layer": run.layer}
            name = f"after layer {run.layer}"
            yield self._span(Kind.BETWEEN, name, run.end_ns, following.begin_ns, args)

    def _of_kernel(self, run: LayerRun) -> Span:
        args = {
            "step": run.step,
            "layer": run.layer,
            "mode": run.mode,
            "slot": run.slot,
            "tokens": run.num_tokens,
            "prefetched": run.is_hit,
        }
        name = f"experts of layer {run.layer}"
        return self._span(Kind.KERNEL, name, run.kernel_ns, run.kernel_end_ns, args)

    def _of_copy(self, copy: LayerCopy) -> Span:
        args = {
            "layer": copy.layer,
            "peer": self._place(copy.peer),
            "bytes": copy.num_bytes,
            "slices": copy.num_copies,
            "busy_us": copy.busy_ns / 1e3,
        }
        name = f"copy for layer {copy.layer}"
        return self._span(Kind.COPY, name, copy.begin_ns, copy.end_ns, args)

    def _place(self, peer: int) -> str:
        """The name of the memory that a copy reads; see LayerCopy.peer."""
        if peer == self._dwdp_rank:
            return "host"
        return f"rank {self._job_ranks[peer]}" if peer >= 0 else "unknown"

    def _span(
        self, kind: Kind, name: str, begin_ns: int, end_ns: int, args: dict[str, Any]
    ) -> Span:
        times = (begin_ns - self._zero_ns) / 1e3, (end_ns - self._zero_ns) / 1e3
        return Span(self._rank, kind, name, *times, args)
