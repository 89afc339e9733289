# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Probes of bandwidths: how many bytes they move, how often, and which of the times they take."""

import itertools

import pytest
import torch

from vllm_dwdp._core import CopyList, HostDriver
from vllm_dwdp.device.bandwidth import (
    CACHES,
    HOST_ROOM_BYTES,
    MIN_GPU_ROOM_BYTES,
    NUM_READS,
    Bandwidths,
    GpuProbe,
    HostProbe,
)

MIB = 1 << 20


def sources(*sizes):
    return [torch.zeros(size, dtype=torch.uint8) for size in sizes]


class NotingCopier:
    """A copier that records the lists it gets and copies nothing."""

    def __init__(self):
        self.lists = []

    def submit(self, copies):
        assert isinstance(copies, CopyList)
        self.lists.append(copies)

    def drain(self):
        pass


@pytest.fixture
def ticking(monkeypatch):
    """A clock that advances by a second at each look, so that a measurement takes no time."""
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    return lambda: next(ticks)


def gpu_probe(clock, cache_bytes=MIB):
    return GpuProbe(HostDriver(), NotingCopier(), clock, cache_bytes)


@pytest.mark.parametrize("sizes", [(4096,), (8192, 4096), (MIN_GPU_ROOM_BYTES, 4096)])
def test_reads_are_of_as_much_as_there_is_room_for(ticking, monkeypatch, sizes):
    looks = iter([0, 100])
    monkeypatch.setattr("time.monotonic", lambda: next(looks))
    found = gpu_probe(ticking).reads(sources(*sizes), until=100)
    assert found == NUM_READS * min(sum(sizes), MIN_GPU_ROOM_BYTES)


@pytest.mark.parametrize(("until", "num_reads"), [(7, 3), (1, 1)])
def test_slow_memory_is_read_less_often_so_that_its_turn_ends(
    ticking, monkeypatch, until, num_reads
):
    """A read takes one second. All reads of a measurement together may take half of the turn."""
    looks = iter([0, until])
    monkeypatch.setattr("time.monotonic", lambda: next(looks))
    assert gpu_probe(ticking).reads(sources(4096), until=until) == num_reads * 4096


@pytest.mark.parametrize("sizes", [(4096,), (8192, 4096), (HOST_ROOM_BYTES, 4096)])
def test_copies_are_repeated_until_they_fill_the_room(ticking, sizes):
    copier = NotingCopier()
    found = HostProbe(HostDriver(), copier).copies(sources(*sizes), until=0)
    once = min(sum(sizes), HOST_ROOM_BYTES)
    assert found == HOST_ROOM_BYTES // once * once
    assert len(set(map(id, copier.lists))) == 1


@pytest.mark.parametrize(
    ("cache_bytes", "room"), [(MIB, MIN_GPU_ROOM_BYTES), (126 * MIB, CACHES * 126 * MIB)]
)
def test_gpu_moves_more_than_its_cache_holds(ticking, cache_bytes, room):
    assert gpu_probe(ticking, cache_bytes).room_bytes == room > cache_bytes


@pytest.mark.parametrize(("probe", "expected"), [(HostProbe, 4096 * 4096), (GpuProbe, 2048 * 4096)])
def test_median_counts_on_a_gpu_and_the_fastest_on_a_cpu(monkeypatch, probe, expected):
    """After the first round, which isn't counted, rounds take 2, 1 and 3 seconds."""
    edges = itertools.accumulate([0, 9, 0, 2, 0, 1, 0, 3])
    monkeypatch.setattr("time.perf_counter", lambda: next(edges))
    looks = iter([0, 0, 1])
    monkeypatch.setattr("time.monotonic", lambda: next(looks))
    options = [lambda: 0.0, MIB] if probe is GpuProbe else []
    made = probe(HostDriver(), NotingCopier(), *options)
    assert made.copies(sources(4096), until=1) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Bandwidths(copies=10e9, peers=10e9, own=10e9), True),  # ranks on one host
        (Bandwidths(copies=87e9, peers=1627e9, own=1627e9), True),  # two ranks on one GPU
        (Bandwidths(copies=354e9, peers=354e9, own=1627e9), False),  # GPUs with NVLink
    ],
)
def test_what_kernels_read_decides_where_weights_are_read(found, expected):
    assert found.reads_peers_as_own is expected


def test_slowest_figure_of_each_kind_counts():
    found = [Bandwidths(3.0, 2.0, 9.0), Bandwidths(1.0, 4.0, 8.0)]
    assert Bandwidths.slowest(found) == Bandwidths(1.0, 2.0, 8.0)
