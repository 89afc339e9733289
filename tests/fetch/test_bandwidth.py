# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Bandwidths are of the bytes that were moved, and of the engine that moves them in a step."""

import itertools

import pytest
import torch

from vllm_dwdp._core import CopyList, HostDriver
from vllm_dwdp.fetch.bandwidth import (
    GPU_SCRATCH_BYTES,
    NUM_READS,
    SCRATCH_BYTES,
    Bandwidths,
    copy_bytes_per_s,
    read_bytes_per_s,
)


def sources(*sizes):
    return [torch.zeros(size, dtype=torch.uint8) for size in sizes]


class NotingCopier:
    """Notes the lists it is given, and is done at once."""

    def __init__(self):
        self.lists = []

    def submit(self, copies):
        assert isinstance(copies, CopyList)
        self.lists.append(copies)

    def drain(self):
        pass


@pytest.mark.parametrize("sizes", [(4096,), (8192, 4096), (GPU_SCRATCH_BYTES, 4096)])
def test_reads_are_of_as_much_as_there_is_room_for(sizes):
    ticks = itertools.count()
    found = read_bytes_per_s(sources(*sizes), lambda: next(ticks))
    assert found == NUM_READS * min(sum(sizes), GPU_SCRATCH_BYTES)


@pytest.mark.parametrize("sizes", [(4096,), (8192, 4096), (SCRATCH_BYTES, 4096)])
def test_copies_are_repeated_until_they_fill_the_room(sizes, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    copier = NotingCopier()
    found = copy_bytes_per_s(HostDriver(), copier, sources(*sizes))
    once = min(sum(sizes), SCRATCH_BYTES)
    assert found == SCRATCH_BYTES // once * once
    assert len(set(map(id, copier.lists))) == 1


def test_nothing_to_move():
    assert copy_bytes_per_s(HostDriver(), NotingCopier(), []) is None
    assert read_bytes_per_s([], lambda: 0.0) is None


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Bandwidths(copies=10e9, peers=10e9, own=10e9), True),  # one host
        (Bandwidths(copies=87e9, peers=1627e9, own=1627e9), True),  # two ranks of one GPU
        (Bandwidths(copies=354e9, peers=354e9, own=1627e9), False),  # NVLink
    ],
)
def test_what_kernels_read_decides_where_weights_are_read(found, expected):
    assert found.reads_peers_as_own is expected
