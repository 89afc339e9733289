# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks experts in host memory: bytes in every mode, bandwidths, and overlap with compute.

On one GPU only copies from the host run beside kernels; the driver copies inside the GPU's memory
with kernels.
"""

import functools

import torch
import triton
import triton.language as tl
from figures import say
from gpu import median_seconds, seconds
from parts import Need, part, run_parts
from rank_pair import RankPair
from support.gpu_ranks import make_ranks

from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.policy import Policy

NUM_EXPERTS, HOST_EXPERTS, NUM_LAYERS, NUM_STEPS = 64, 32, 6, 4
PAGES_OF_A_ROW = {"w13_weight": 2.75, "w2_weight": 1.375}
WORDS = tl.constexpr(4096)


@triton.jit
def _copy(source, destination, num_words):
    """Copy int64 words."""
    places = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    read = tl.load(source + places, places < num_words)
    tl.store(destination + places, read, places < num_words)


def read_by_kernel(source, target):
    """Copy `source` to `target` with a kernel; both are uint8 tensors that the GPU can read."""
    num_words = target.numel() // 8
    words = [tensor[: 8 * num_words].view(torch.int64) for tensor in (source, target)]
    _copy[(triton.cdiv(num_words, WORDS.value),)](*words, num_words)


@functools.cache
def rank_of(device):
    """A rank alone, half of whose experts lie in host memory."""
    return RankPair.of_pages(
        device,
        PAGES_OF_A_ROW,
        num_experts=NUM_EXPERTS,
        num_layers=NUM_LAYERS,
        dwdp_size=1,
        host_experts=HOST_EXPERTS,
    )


@part("experts in host memory: direct and prefetch")
def in_place_and_copied(device):
    """Check reads of a rank alone, and of two ranks that read each other's experts."""
    for dwdp_size in (1, 2):
        ranks = make_ranks(device, num_experts=9, dwdp_size=dwdp_size, host_experts=2)
        for mode in (FetchMode.DIRECT, FetchMode.PREFETCH):
            check_reads(ranks, mode)
        say(f"experts in host memory, {dwdp_size} ranks", answer="read as written")


@part("experts in host memory: selective", Need.TORCH, Need.TRITON)
def chosen(device):
    ranks = make_ranks(device, num_experts=9, dwdp_size=2, host_experts=2)
    check_reads(ranks, FetchMode.SELECTIVE, torch.tensor([0, 8, 3, 4, 7], device="cuda"))
    say("chosen experts in host memory", answer="read as written")


def check_reads(ranks, mode, ids=None):
    for rank in ranks:
        for _ in range(3):
            rank.step(mode, ids)
        wrong = rank.num_wrong_reads()
        assert wrong == 0, f"{wrong} wrong reads, {mode}"


@part("copies and reads of host memory", Need.TORCH, Need.TRITON)
def speeds(device):
    rank = rank_of(device)
    rank.make_scheduler()
    everything, missing = rank.copies[0].everything, sum(rank.copies[0].bytes_by_peer)
    view = device.bytes_of(rank.direct[0][0])
    on_host = view[view.numel() // 2 + rank.driver.granularity :]
    on_gpu = view[: on_host.numel()]
    found = torch.empty_like(on_host)
    pinned = torch.empty(on_host.numel(), dtype=torch.uint8).pin_memory()
    works = {
        "copy_into_slot": (missing, lambda: rank.copy(everything)),
        "copy_of_pinned_memory": (
            pinned.nbytes,
            lambda: found.copy_(pinned, non_blocking=True),
        ),
        "kernel_reads_host": (on_host.nbytes, lambda: read_by_kernel(on_host, found)),
        "kernel_reads_gpu": (on_gpu.nbytes, lambda: read_by_kernel(on_gpu, found)),
    }
    with device.on(rank.stream):
        times = median_seconds([work for _, work in works.values()], repeats=10)
    rates = {
        f"{name}_gb_per_s": round(num_bytes / time / 1e9, 1)
        for (name, (num_bytes, _)), time in zip(works.items(), times, strict=True)
    }
    say("copies and reads of host memory", mib=missing / 2**20, **rates)


@part("prefetch from host memory beside compute", Need.TORCH)
def overlap(device):
    """Compare prefetch steps with the larger of compute and copy time, and with the sum of both.

    Slots are empty at the start, so the first layers of the first step wait for their copies.
    """
    rank = rank_of(device)
    rank.make_scheduler()
    a = torch.randn(4096, 4096, device="cuda").bfloat16()
    layers = list(range(NUM_LAYERS)) * NUM_STEPS

    def steps(mode, products):
        rank.scheduler.policy = Policy.always(mode)
        for layer in layers:
            taken = rank.scheduler.wait(layer, 1)
            for _ in range(products):
                a @ a
            rank.scheduler.release(layer, taken)

    def copy_all():
        for layer in layers:
            rank.copy(rank.copies[layer].everything)

    with device.on(rank.stream):
        (copied,) = median_seconds([copy_all], repeats=3)
        product = median_seconds([lambda: [a @ a for _ in range(100)]], repeats=3)[0] / 100
        for share in (2.0, 1.0, 0.5):
            products = max(1, round(share * copied / len(layers) / product))
            compute_s = seconds(lambda n=products: steps(FetchMode.DIRECT, n))
            fetch = functools.partial(steps, FetchMode.PREFETCH, products)
            (fetched,) = median_seconds([fetch], repeats=3, before=rank.scheduler.stop)
            say(
                f"prefetch beside compute of {share:g} times the copies",
                ratio=round(fetched / max(compute_s, copied), 3),
                ratio_to_sum=round(fetched / (compute_s + copied), 3),
                compute_ms=round(compute_s * 1e3, 1),
                copy_ms=round(copied * 1e3, 1),
                expected={"ratio": (0.9, 1.25)},
            )


if __name__ == "__main__":
    run_parts(in_place_and_copied, chosen, speeds, overlap)
