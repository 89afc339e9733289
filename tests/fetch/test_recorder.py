# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A recording says what layers did in some steps, and agrees with the counters of these steps."""

import statistics
import time

import pytest
from support.host_layers import HostLayers

from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch import recorder
from vllm_dwdp.fetch.recording import growth

PREFETCH, SELECTIVE, DIRECT = FetchMode.PREFETCH, FetchMode.SELECTIVE, FetchMode.DIRECT
MODES = (PREFETCH, SELECTIVE, DIRECT)
REAL_LAYER_S = 1e-3
"""What a MoE layer takes at least in a step of the sizes that copy: docs/scheduler.md."""


def counted_bytes(counts):
    return sum(map(sum, counts["bytes_fetched"].values()))


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_bytes_and_waits_are_those_of_the_counters(mode, num_threads):
    layers = HostLayers(num_threads=num_threads)
    layers.scheduler.start()
    layers.step(PREFETCH)
    before = layers.counters.snapshot()
    layers.tracing.start(3)
    for _ in range(3):
        layers.step(mode)
    counts = growth(before, layers.counters.snapshot())
    recording = layers.tracing.take()
    assert recording.counts == counts
    assert sum(copy.num_bytes for copy in recording.copies) == counted_bytes(counts)
    waited = sum(wait.end_ns - wait.begin_ns for wait in recording.waits) / 1e9
    assert waited == pytest.approx(sum(counts["exposed_seconds"]), rel=1e-3)
    assert recording.num_dropped_bytes == 0


@pytest.mark.parametrize("mode", MODES)
def test_every_run_of_a_layer_is_there_in_order(mode):
    layers = HostLayers(kernel_s=1e-4)
    recording = layers.recorded(3, mode, num_tokens=77)
    assert recording.num_steps == recording.wanted_steps == 3
    expected = [(step, layer) for step in range(3) for layer in range(layers.num_layers)]
    assert [(run.step, run.layer) for run in recording.runs] == expected
    assert {run.num_tokens for run in recording.runs} == {77}
    assert {run.mode for run in recording.runs} == {mode.value}
    slots = {-1} if mode is DIRECT else {0, 1}
    assert {run.slot for run in recording.runs} == slots
    times = [time for run in recording.runs for time in run[-4:]]
    assert times == sorted(times)
    assert all(run.kernel_end_ns - run.kernel_ns >= 1e5 for run in recording.runs)


def test_waits_lie_before_the_kernel_of_their_layer():
    recording = HostLayers().recorded(3)
    runs = {(run.step, run.layer): run for run in recording.runs}
    assert recording.waits
    for wait in recording.waits:
        run = runs[wait.step, wait.layer]
        assert run.begin_ns <= wait.begin_ns <= wait.end_ns <= run.kernel_ns


def test_copies_name_their_layer_and_the_peer_that_was_read():
    layers = HostLayers(kernel_s=2e-3)
    recording = layers.recorded(2)
    assert {copy.peer for copy in recording.copies} == {1, 2}
    assert {copy.layer for copy in recording.copies} == set(range(layers.num_layers))
    one_list = [copy for copy in recording.copies if copy.ticket == recording.copies[0].ticket]
    assert sum(copy.num_bytes for copy in one_list) == layers.layer_bytes


def test_copies_of_chosen_experts_belong_to_the_layer_that_waited_for_them():
    layers = HostLayers(num_slots=6)
    recording = layers.recorded(1, SELECTIVE, num_chosen=5)
    assert [copy.layer for copy in recording.copies] == sorted(list(range(6)) * 5)
    by_peer = {
        peer: sum(c.num_bytes for c in recording.copies if c.peer == peer) for peer in (1, 2)
    }
    assert by_peer[1] == 4 * by_peer[2] == 4 * 6 * (1 << 18)


def test_prefetches_that_began_early_are_told_from_late_ones():
    layers = HostLayers(kernel_s=1e-3)
    layers.tracing.start(2)
    layers.step()
    layers.step()
    runs = layers.tracing.take().runs
    late = [run.layer for run in runs if not run.is_hit]
    assert late == [0, 1], "nothing was fetched before the first step"


def test_copies_that_outlast_the_recording_are_in_it_and_later_ones_are_not():
    layers = HostLayers(expert_bytes=1 << 22)
    layers.tracing.start(1)
    layers.step()
    counts = growth(layers.counters.snapshot(), layers.counters.snapshot())
    layers.step()
    recording = layers.tracing.take()
    num_lists = len({copy.ticket for copy in recording.copies})
    assert num_lists == layers.num_layers + 2, "two for the step after"
    assert counted_bytes(counts) == 0
    assert sum(copy.num_bytes for copy in recording.copies) == counted_bytes(recording.counts)


def test_fewer_steps_than_asked_for_can_be_taken():
    layers = HostLayers()
    layers.tracing.start(10)
    assert layers.tracing.num_steps == 0
    layers.step()
    assert layers.tracing.num_steps == 1
    recording = layers.tracing.take()
    assert (recording.num_steps, recording.wanted_steps) == (1, 10)
    assert layers.tracing.num_steps == 0


def test_recording_that_is_started_anew_holds_later_steps_only():
    layers = HostLayers()
    layers.tracing.start(5)
    layers.step(num_tokens=1)
    assert {run.num_tokens for run in layers.recorded(2, num_tokens=2).runs} == {2}


@pytest.mark.parametrize("num_steps", [0, -1, recorder.MAX_RUNS // 6 + 1])
def test_number_of_steps_that_cannot_be_recorded_is_refused(num_steps):
    with pytest.raises(ValueError, match=f"1 to 8333 steps to record, got {num_steps}"):
        HostLayers().tracing.start(num_steps)


def test_recording_that_was_not_started_cannot_be_taken():
    with pytest.raises(RuntimeError, match="got none; start one first"):
        HostLayers().tracing.take()


def test_memory_is_bounded_however_long_the_steps_are(monkeypatch):
    monkeypatch.setattr(recorder, "MAX_SPANS", 10)
    monkeypatch.setattr(recorder, "MAX_RUNS", 13)
    layers = HostLayers()
    layers.tracing._max_steps = 1000
    recording = layers.recorded(1000, extra_steps=0)
    assert len(recording.runs) == 18, "to the end of the step"
    assert len(recording.copies) == 10
    found = sum(copy.num_bytes for copy in recording.copies) + recording.num_dropped_bytes
    assert found == counted_bytes(recording.counts)


def test_kernel_that_fails_is_recorded_and_the_next_step_too():
    layers = HostLayers()
    layers.tracing.start(2)
    taken = layers.fetcher.wait(0, 1)
    layers.fetcher.release(0, taken)
    layers.step()
    assert [run.layer for run in layers.tracing.take().runs] == [0, *range(6)]


def test_nothing_stands_between_layers_and_scheduler_while_nothing_is_recorded():
    layers = HostLayers()
    waits = layers.scheduler.waits
    for _ in range(2):
        assert layers.fetcher is layers.scheduler
        assert layers.scheduler.waits is waits
        layers.recorded(1)


def layer_seconds(layers, mode, num_steps=20):
    """The thread's time in the calls around a layer."""
    start = time.thread_time()
    for _ in range(num_steps):
        layers.step(mode)
    return (time.thread_time() - start) / num_steps / layers.num_layers


@pytest.mark.parametrize("mode", [DIRECT, PREFETCH])
def test_recording_costs_less_than_a_hundredth_of_a_step_and_nothing_when_off(mode):
    """All three take turns. Layers keep their slots, so that no copy disturbs the measurement."""
    fresh, used = (HostLayers(num_layers=48, num_slots=48, expert_bytes=4096) for _ in range(2))
    used.recorded(2)
    off, after, on = [], [], []
    for _ in range(25):
        off.append(layer_seconds(fresh, mode))
        after.append(layer_seconds(used, mode))
        used.tracing.start(20)
        on.append(layer_seconds(used, mode))
        used.tracing.take()
    off_s, after_s, on_s = map(statistics.median, (off, after, on))
    print(f"a layer: {off_s * 1e6:.2f} us, {after_s * 1e6:.2f} after one, {on_s * 1e6:.2f} in one")
    assert after_s - off_s < 0.001 * REAL_LAYER_S
    assert on_s - off_s < 0.01 * REAL_LAYER_S
