# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Waits are counted by layer: on the host by a clock, on a GPU once their events have passed."""

import itertools

import pytest
import torch

from vllm_dwdp.device.waits import SAMPLED_STEPS, GpuWaits, HostWaits


class Event:
    """Takes the place of torch.cuda.Event; the test sets the GPU's clock and progress."""

    now_ms = 0.0
    has_passed = False
    made = 0

    def __init__(self, enable_timing):
        assert enable_timing
        Event.made += 1

    def record(self):
        self.at_ms = Event.now_ms

    def query(self):
        return Event.has_passed

    def elapsed_time(self, end):
        return end.at_ms - self.at_ms


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose clock is at 0 and on which no event has passed."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    Event.now_ms, Event.has_passed, Event.made = 0.0, False, 0
    return Event


def step(waits, number, milliseconds):
    """Run a step in which layer 1 waits so long."""
    waits.begin(number)
    Event.now_ms += milliseconds
    waits.end(1)


def test_host_waits_are_those_of_the_thread(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks) * 3.0)
    seconds = [0.0, 0.0]
    waits = HostWaits(seconds)
    for layer in (1, 1, 0):
        waits.begin(7)
        waits.end(layer)
    assert seconds == [3.0, 6.0]


def test_gpu_waits_are_counted_once_their_events_have_passed(gpu):
    seconds = [0.0, 0.0]
    waits = GpuWaits(seconds)
    step(waits, 0, 5.0)
    step(waits, SAMPLED_STEPS, 7.0)
    assert seconds == [0.0, 0.0]
    gpu.has_passed = True
    step(waits, 2 * SAMPLED_STEPS, 1.0)
    assert seconds == [0.0, pytest.approx(SAMPLED_STEPS * 0.012)]


def test_gpu_waits_of_the_steps_between_cost_no_event(gpu):
    waits = GpuWaits([0.0, 0.0])
    for number in range(1, SAMPLED_STEPS):
        step(waits, number, 1.0)
    assert gpu.made == 0


def test_events_that_have_passed_are_used_again(gpu):
    gpu.has_passed = True
    waits = GpuWaits([0.0, 0.0])
    for number in range(10):
        step(waits, number * SAMPLED_STEPS, 1.0)
    assert gpu.made == 2


def test_nothing_is_recorded_under_capture(gpu, monkeypatch):
    """A recorded event would become part of the graph."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    seconds = [0.0, 0.0]
    waits = GpuWaits(seconds)
    step(waits, 0, 5.0)
    assert gpu.made == 0 and seconds == [0.0, 0.0]
