# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp bench memory`: it copies peers' bytes, on hosts and over the fake CUDA driver."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from support.fake_cuda import LIBRARY, FakeCuda

from vllm_dwdp.bench import bench_memory
from vllm_dwdp.bench.bench_memory import Machine
from vllm_dwdp.bench.errors import BenchError

NUM_PEERS, PEER_BYTES, SLOT_BYTES = 3, 4 << 20, 2 << 20


@pytest.fixture(params=["host", "cuda"])
def machine(request, monkeypatch):
    monkeypatch.setattr(bench_memory, "SECONDS", 0.01)
    if request.param == "host":
        found = Machine.of_host(NUM_PEERS, copy_threads=2)
    else:
        FakeCuda().reset(granularity=2 << 20)
        found = Machine.of_gpus(NUM_PEERS, num_gpus=2, library=str(LIBRARY))
    assert found.reader.kind == request.param
    return dataclasses.replace(found, peer_bytes=PEER_BYTES, slot_bytes=SLOT_BYTES)


def test_every_number_of_peers_and_size_of_slices_is_measured(machine):
    found = bench_memory.bench_memory(machine, [1, NUM_PEERS], [1 << 16, 1 << 20])
    assert [(one.num_peers, one.slice_bytes) for one in found] == [
        (peers, size) for peers in (1, NUM_PEERS) for size in (1 << 16, 1 << 20)
    ]
    assert all(1e6 < one.bytes_per_s < 1e12 and 1e-7 < one.latency_s < 1 for one in found)


@pytest.mark.parametrize(
    ("num_gpus", "places"),
    [(1, ["GPU 0"] * 3), (2, ["GPU 1"] * 3), (3, ["GPU 1", "GPU 2", "GPU 1"])],
)
def test_peers_lie_on_other_gpus_if_there_are_any(num_gpus, places, monkeypatch):
    monkeypatch.setattr(bench_memory, "CudaDriver", lambda gpu, library: FakeCuda().driver(gpu))
    FakeCuda().reset()
    assert Machine.of_gpus(NUM_PEERS, num_gpus).places == places


def test_peers_lie_on_other_memory_nodes_if_there_are_any(monkeypatch):
    monkeypatch.setattr(
        bench_memory, "read_numa_nodes", lambda: {0: 0b0011, 1: 0b1100, 2: 0b110000}
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 4})
    found = [(node.number, node.cores) for node in bench_memory._nodes()]
    assert found == [(1, {2, 3}), (2, {4})]


def test_too_many_peers_for_the_memory_are_refused():
    machine = dataclasses.replace(Machine.of_host(2, copy_threads=1), peer_bytes=1 << 50)
    with pytest.raises(BenchError, match=r"expected \d+ MiB of free memory for 2 peers, got"):
        bench_memory.bench_memory(machine, [1], [1 << 20])


def test_slices_come_from_one_peer_after_the_other():
    machine = dataclasses.replace(
        Machine.of_host(NUM_PEERS, copy_threads=1), peer_bytes=PEER_BYTES, slot_bytes=SLOT_BYTES
    )
    view, slot = machine.peers(), machine.reader.create_slot_page(SLOT_BYTES)
    size = 1 << 18
    machine.copier.submit(bench_memory._copies(machine, view, slot, 2, size))
    machine.copier.drain()
    shown = machine.reader.reserve_view(SLOT_BYTES)
    shown.map_slot_page(0, slot)
    shown.finish()
    slices = torch.from_dlpack(shown.bytes_tensor()).view(-1, size)
    assert [set(one.tolist()) for one in slices] == [{1}, {2}] * (len(slices) // 2)


@pytest.mark.parametrize("size", [0, SLOT_BYTES + 1])
def test_slices_that_do_not_fit_are_refused(machine, size):
    with pytest.raises(BenchError, match=f"expected slices of 1 to {SLOT_BYTES} bytes, got {size}"):
        bench_memory.bench_memory(machine, [1], [size])


def test_the_command_prints_json():
    command = [sys.executable, "-m", "vllm_dwdp.cli", "bench", "memory", "--json"]
    command += ["--dwdp-size", "2", "--slice-bytes", str(1 << 20)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert found["memory"] == "host"
    assert len(found["peers"]) == 1
    (one,) = found["copies"]
    assert one["num_peers"] == 1
    assert 1e8 < one["bytes_per_s"] < 1e12
