# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures copies: slices against one whole copy, many submissions, and the time on the host.

The memory of both ranks is on one GPU, where the driver copies with a kernel, so the figures say
nothing about NVLink.
"""

import contextlib
import functools
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from figures import say
from parts import PATIENCE, REHEARSE, Need, part, run_parts
from rank_pair import RankPair

from vllm_dwdp._core import CopyList, CudaCopier
from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.fetch.recorder import StepRecorder

NUM_EXPERTS, NUM_LAYERS = 64, 6
TIMED_STEPS, WARM_UP_STEPS = 60, 10
PAGES_OF_A_ROW = {"w13_weight": 5.5, "w2_weight": 2.75}
PAGES_COPIED = 256
SLICE_PAGES = 32
FLAGS = {"copy engine preferred": True, "no flag": False}
BATCHES = {"batched": True, "a call each": False}
SUBMISSIONS = Path(__file__).with_name("submissions.py")
SUBMISSIONS_LIMIT_S = 30 * PATIENCE


@functools.cache
def pair_of(device):
    return RankPair.of_pages(device, PAGES_OF_A_ROW, num_experts=NUM_EXPERTS, num_layers=NUM_LAYERS)


@part("slices beside one copy")
def slices(device):
    """Times both with the host's clock, which is exact enough for copies of milliseconds."""
    driver = device.driver()
    page = driver.granularity
    source, target = (driver.create_slot_page(PAGES_COPIED * page) for _ in range(2))
    starts = range(0, source.num_bytes, SLICE_PAGES * page)
    cut = [(target.address + at, source.address + at, SLICE_PAGES * page) for at in starts]
    whole = CopyList([[(target.address, source.address, source.num_bytes)]])
    for batches, use_batches in BATCHES.items():
        for flag, prefer_overlap in FLAGS.items():
            copier = CudaCopier(driver, use_batches=use_batches, prefer_overlap=prefer_overlap)
            plain = copy_seconds(copier, whole)
            sliced = copy_seconds(copier, CopyList([cut]))
            say(
                f"{len(cut)} slices beside one copy, {batches}, {flag}",
                ratio=round(plain / sliced, 3),
                mib=source.num_bytes / 2**20,
                plain_gb_per_s=round(source.num_bytes / plain / 1e9, 1),
                expected={"ratio": (0.85, 1.15)},
            )


def copy_seconds(copier, copies, repeats=20):
    """Median seconds of a copy; the first repeat isn't counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        copier.submit(copies)
        copier.drain()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


@part("many submissions, a call for each copy")
def single_submissions(device):
    ended, answer = submit_in_child(use_batches=False)
    assert ended, answer
    say("many submissions, a call for each copy", answer=answer)


@part("many submissions, batched")
def batched_submissions(device):
    """Some versions of NVIDIA's driver crash or hang here; on a GPU that is a figure, no error."""
    ended, answer = submit_in_child(use_batches=True)
    assert ended or Need.TORCH in device.offers, answer
    say(
        "many submissions, batched",
        answer=answer,
        ended=int(ended),
        expected={"ended": (1, None)},
    )


def submit_in_child(*, use_batches):
    """Run submissions.py; returns (did it end with right bytes, its last output)."""
    command = [sys.executable, str(SUBMISSIONS), "batched" if use_batches else "single"]
    command += [REHEARSE] if REHEARSE in sys.argv else []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        output, _ = process.communicate(timeout=SUBMISSIONS_LIMIT_S)
        ending = f"exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        ending = f"no end within {SUBMISSIONS_LIMIT_S:.0f} s"
    is_right = process.returncode == 0
    return is_right, output.strip() if is_right else f"{output[-1500:]} ({ending})"


@part("host cost of a layer, direct and prefetch")
def host_cost(device):
    pair = pair_of(device)
    pair.make_scheduler()
    measure_host_cost(pair, FetchMode.DIRECT, (None, 10))
    measure_host_cost(pair, FetchMode.PREFETCH, (None, 80))
    with recording(pair) as recorder:
        measure_host_cost(pair, FetchMode.PREFETCH, (None, 120), calls=recorder, name=", recorded")


@part("host cost of a layer, selective", Need.TORCH, Need.TRITON)
def host_cost_selective(device):
    pair = pair_of(device)
    pair.make_scheduler(device.make_chosen(None, 2))
    ids = torch.zeros(8, dtype=torch.int32, device="cuda")
    chosen = (ids.data_ptr(), ids.numel(), ids.element_size())
    measure_host_cost(pair, FetchMode.SELECTIVE, (None, 60), chosen)


@contextlib.contextmanager
def recording(pair):
    """Record all steps in the block, and check that they are all there, in the order of time."""
    recorder = StepRecorder(
        pair.scheduler, pair.copier, install=lambda _: None, counts=dict, wanted_steps=TIMED_STEPS
    )
    recorder.start()
    yield recorder
    found = recorder.take()
    assert len(found.runs) == TIMED_STEPS * NUM_LAYERS, f"recorded {len(found.runs)} runs of layers"
    times = [ns for run in found.runs for ns in (run.begin_ns, run.kernel_end_ns, run.end_ns)]
    assert times == sorted(times), "recorded times are not in order"
    assert found.copies, "recorded no copy"
    assert all(copy.begin_ns <= copy.end_ns for copy in found.copies), "a copy ends too early"


def measure_host_cost(pair, mode, expected, chosen=None, *, calls=None, name=""):
    """Time `wait` and `release` outside of graphs; the device ends each step before the next.

    calls: what they are called of, instead of the scheduler.
    """
    calls = calls or pair.scheduler
    pair.scheduler.policy = Policy.always(mode)
    times = []
    with pair.device.on(pair.stream):
        for step in range(TIMED_STEPS):
            for layer in range(NUM_LAYERS):
                start = time.perf_counter()
                calls.release(layer, calls.wait(layer, 1, chosen))
                times += [time.perf_counter() - start] if step > WARM_UP_STEPS else []
            pair.device.synchronize(pair.stream)
    pair.scheduler.stop()
    median_us = round(statistics.median(times) * 1e6, 2)
    title = f"host cost of a layer, {mode}{name}"
    say(title, median_us=median_us, expected={"median_us": expected})


@part("a small host-to-device copy beside a prefetch", Need.TORCH)
def small_copy(device):
    """Stream priority doesn't order copy engines: vLLM's inputs may queue behind expert copies."""
    pair = pair_of(device)
    pair.make_scheduler()
    inputs = torch.zeros(64 << 10, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(inputs, device="cuda")
    stream = torch.cuda.Stream()

    def seconds_to_arrive():
        start = time.perf_counter()
        with torch.cuda.stream(stream):
            target.copy_(inputs, non_blocking=True)
        stream.synchronize()
        return time.perf_counter() - start

    def beside_prefetch():
        for layer in range(NUM_LAYERS):
            pair.copier.submit(pair.copies[layer].everything, pair.stream)
        found = seconds_to_arrive()
        pair.copier.drain()
        return found

    alone = statistics.median(seconds_to_arrive() for _ in range(30))
    beside = [beside_prefetch() for _ in range(30)]
    say(
        "64 KiB from the host while layers are prefetched",
        alone_us=round(alone * 1e6, 1),
        beside_us=round(statistics.median(beside) * 1e6, 1),
        slowest_beside_us=round(max(beside) * 1e6, 1),
        expected={"beside_us": (None, 500)},
    )


if __name__ == "__main__":
    run_parts(
        slices,
        single_submissions,
        host_cost,
        host_cost_selective,
        small_copy,
        batched_submissions,
    )
