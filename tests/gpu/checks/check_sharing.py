# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks memory shared between processes, and the parts of a view; compares every byte."""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from figures import say
from parts import PATIENCE, Need, part, run_parts
from support.gpu_ranks import make_ranks

from vllm_dwdp._core import HandleType
from vllm_dwdp.bench.ports import free_port
from vllm_dwdp.config import FetchMode
from vllm_dwdp.group.handover.peer_probe import PeerProbe

SCRIPT = Path(__file__).parents[2] / "cuda" / "gpu_process.py"
RANKS_LIMIT_S = 60 * PATIENCE
NUM_STEPS = 9


def sealed_block(driver, num_bytes, value):
    """A sealed block in which every byte is `value`."""
    block = driver.create_block(num_bytes)
    source = torch.full((num_bytes,), value, dtype=torch.uint8)
    block.fill(0, source.data_ptr(), num_bytes)
    block.seal()
    return block


@part("one read-only view of own, imported and private memory")
def mixed_view(device):
    """A view of an own block, a private page and an imported block, as a layer's view has them."""
    driver = device.driver()
    page = driver.granularity
    exported = sealed_block(device.driver(1), page, 2).export_handle(HandleType.FILE_DESCRIPTOR)
    pieces = [sealed_block(driver, page, 1), driver.import_block(exported, page, 2 * page)]
    view = driver.reserve_view(3 * page)
    view.map_block(0, pieces[0])
    view.map_private(page, page)
    view.map_block(2 * page, pieces[1])
    boundary = torch.full((page,), 3, dtype=torch.uint8)
    view.fill_private(page, boundary.data_ptr(), page)
    view.finish()
    stream = device.make_stream()
    with device.on(stream):
        found = device.read(stream, view, 3 * page)
    device.synchronize(stream)
    assert found.cpu().view(3, page).unique(dim=1).flatten().tolist() == [1, 3, 2]
    say("mixed view", answer="read as written", page_mib=page / 2**20)
    device.destroy_stream(stream)


@part("two processes read each other's experts")
def two_processes(device):
    compare_ranks(device, 2)


@part("four processes read each other's experts")
def four_processes(device):
    compare_ranks(device, 4)


@part("copies of extra experts")
def extra_experts(device):
    """Two ranks keep copies of some of the experts that they lack, and copy fewer bytes."""
    copied = []
    for counts in (None, [[[0, 0, 0, 0, 1, 1, 0]] * 3, [[1, 0, 0, 1, 0, 0, 0]] * 3]):
        ranks = make_ranks(device, num_experts=7, counts=counts)
        for rank in ranks:
            for mode in (FetchMode.DIRECT, FetchMode.PREFETCH):
                rank.step(mode)
            assert rank.num_wrong_reads() == 0
        copied.append([rank.counters.bytes_fetched["prefetch"] for rank in ranks])
    fewer = [1 - sum(after) / sum(before) for before, after in zip(*copied, strict=True)]
    assert all(share > 0 for share in fewer), fewer
    say("copies of extra experts", bytes_saved=[round(share, 2) for share in fewer])


@part("ranks that see no GPU but their own", Need.TWO_GPUS)
def hidden_gpus(device):
    """Finds out whether ranks can share if each sees only its own GPU; both answers are fine."""
    endings = run_ranks(device, 2, visible=str, gpu=lambda rank: 0)
    say("ranks that see no GPU but their own", answer=[said["ending"] for said in endings])


@part("fabric handles")
def fabric(device):
    """Finds out whether fabric handles work. On one host ranks don't need them."""
    driver = device.driver()
    answer = driver.obstacles[HandleType.FABRIC]
    if answer is None:
        probe = PeerProbe(driver, job_rank=0)
        ((page, _),) = probe.handles(HandleType.FABRIC)
        answer = probe.reason([page], peer_job_rank=0) or "a page was read back"
    say("fabric handles", answer=answer)


def compare_ranks(device, size):
    start = time.perf_counter()
    said = run_ranks(device, size)
    endings = {rank["ending"] for rank in said}
    assert endings == {"0 wrong reads"}, endings
    seconds = round(time.perf_counter() - start, 1)
    say(f"{size} processes", handles=said[0]["handles"], steps=NUM_STEPS, seconds=seconds)


def run_ranks(device, size, **by_rank):
    """Run gpu_process.py for each rank; returns their outcomes.

    by_rank: by key of the job, a function from the rank to its value.
    """
    port = free_port()
    jobs = [
        {"rank": rank, "size": size, "port": port, "gpu": rank, "steps": NUM_STEPS, **device.job}
        | {name: value(rank) for name, value in by_rank.items()}
        for rank in range(size)
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, str(SCRIPT), json.dumps(job)], **pipes) for job in jobs
    ]
    deadline = time.monotonic() + RANKS_LIMIT_S
    try:
        return [ending_of(process, deadline) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def ending_of(process, deadline):
    output, errors = process.communicate(timeout=max(0, deadline - time.monotonic()))
    assert process.returncode == 0, errors[-2000:]
    said = json.loads(output)
    assert said["violations"] == said["leaks"] == [], said
    return said


if __name__ == "__main__":
    run_parts(mixed_view, two_processes, four_processes, extra_experts, hidden_gpus, fabric)
