# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Recordings on the CUDA path: events in the streams tell when kernels and copies ran."""

import time

import pytest
from support.fake_cuda import OUT_OF_MEMORY
from support.gpu_ranks import make_ranks

from vllm_dwdp._core import DriverError
from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.rank.tracing import Tracing

DIRECT, PREFETCH = FetchMode.DIRECT, FetchMode.PREFETCH


class TracedRank:
    """A rank of a group of two whose layers call what is installed, as in an engine."""

    def __init__(self, fake, **options):
        self.ranks = make_ranks(fake, **options)
        self.rank = self.ranks[0]
        self.scheduler = self.rank.scheduler
        self.tracing = Tracing(
            self.scheduler,
            self.scheduler._copier,
            num_layers=3,
            install=self._install,
            counts=self.rank.counters.snapshot,
        )

    def step(self, mode=PREFETCH):
        self.scheduler.policy = Policy.always(mode)
        for layer in range(3):
            self.rank.run(layer)

    def recorded(self, num_steps, mode=PREFETCH):
        self.tracing.start(num_steps)
        for _ in range(num_steps + 1):
            self.step(mode)
        return self.tracing.take()

    def _install(self, fetcher):
        self.rank.scheduler = fetcher


@pytest.mark.parametrize("use_batches", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_copies_are_those_that_the_counters_count(fake, use_batches, seed):
    fake.reset(seed)
    traced = TracedRank(fake, use_batches=use_batches)
    traced.step()
    recording = traced.recorded(3)
    counted = sum(recording.counts["bytes_fetched"]["prefetch"])
    assert sum(copy.num_bytes for copy in recording.copies) == counted > 0
    assert {copy.peer for copy in recording.copies} == {1}
    assert {copy.layer for copy in recording.copies} == {0, 2}, "layer 1 keeps its slot"
    assert traced.rank.num_wrong_reads() == 0


@pytest.mark.parametrize("seed", range(4))
def test_times_keep_the_order_of_the_streams(fake, seed):
    """A layer's kernel begins after its copies have ended, whatever the order of other work."""
    fake.reset(seed)
    traced = TracedRank(fake)
    traced.step()
    before = time.perf_counter_ns()
    recording = traced.recorded(2)
    assert len(recording.runs) == 6
    for run in recording.runs:
        assert before < run.begin_ns <= run.kernel_ns <= run.kernel_end_ns <= run.end_ns
    ends = {}
    for copy in recording.copies:
        assert copy.begin_ns <= copy.end_ns
        ends.setdefault(copy.layer, []).append((copy.ticket, copy.end_ns))
    for layer, of_layer in ends.items():
        first_ticket = of_layer[0][0]
        ended_ns = max(end for ticket, end in of_layer if ticket == first_ticket)
        later = [run for run in recording.runs if run.layer == layer and run.kernel_ns >= ended_ns]
        assert later, "a kernel that read what was copied"


def test_host_waits_when_a_recording_starts_and_when_it_is_taken_only(fake):
    traced = TracedRank(fake)
    names = ("cuCtxSynchronize", "cuStreamSynchronize", "cuEventElapsedTime")
    traced.tracing.start(2)
    before = [fake.calls(name) for name in names]
    for _ in range(4):
        traced.step()
    assert [fake.calls(name) for name in names] == before
    traced.tracing.take()
    assert fake.calls("cuCtxSynchronize") == before[0] + 1


def test_nothing_is_recorded_when_nobody_asks(fake):
    traced = TracedRank(fake)
    traced.step()
    calls = fake.calls("cuEventRecord")
    traced.step()
    of_a_step = fake.calls("cuEventRecord") - calls
    traced.recorded(2)
    calls = fake.calls("cuEventRecord")
    traced.step()
    assert fake.calls("cuEventRecord") - calls == of_a_step


def test_direct_steps_are_recorded_without_copies(fake):
    recording = TracedRank(fake).recorded(2, DIRECT)
    assert [run.mode for run in recording.runs] == ["direct"] * 6
    assert recording.copies == () and recording.waits == ()


def test_steps_under_capture_leave_no_marks_in_the_graph(fake):
    traced = TracedRank(fake)
    traced.tracing.start(2)
    assert fake.begin_capture(traced.rank.stream) == 0
    traced.step(DIRECT)
    graph = fake.end_capture(traced.rank.stream)
    traced.step()
    recording = traced.tracing.take()
    assert {run.step for run in recording.runs} == {1}
    fake.destroy_graph(graph)


@pytest.mark.parametrize("symbol", ["cuEventCreate", "cuEventRecord", "cuStreamSynchronize"])
def test_recording_that_cannot_start_leaves_steps_as_they_were(fake, symbol):
    traced = TracedRank(fake)
    traced.step()
    fake.fail(symbol, 1, OUT_OF_MEMORY)
    with pytest.raises(DriverError, match=symbol):
        traced.tracing.start(2)
    assert traced.rank.scheduler is traced.scheduler
    traced.step()
    assert traced.rank.num_wrong_reads() == 0
    assert traced.recorded(1).num_steps == 1
