# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What copies cost: sliced batches beside one plain copy, both flags; prefetch beside compute.

The other rank's memory is on the same GPU, so the figures are of its own copy engine.
"""

import statistics
import time

import torch
from figures import say
from gpu import Gpu, median_seconds, seconds
from rank_pair import RankPair

from vllm_dwdp._core import CopyList, CudaCopier
from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.policy import Policy

SHAPES = {"w13_weight": (64, 2816, 2048), "w2_weight": (64, 2048, 1408)}
NUM_LAYERS = 6
NUM_STEPS = 10
FLAGS = {"prefer_overlap": True, "no_flag": False}


def bandwidth():
    """Sliced batches over one copy of as many bytes, on the same engine, with the same flag."""
    source = torch.zeros(512 << 20, dtype=torch.uint8, device="cuda")
    page = pair.driver.create_slot_page(source.nbytes)
    step = 64 << 20
    slices = [
        (page.address + at, source.data_ptr() + at, step) for at in range(0, source.nbytes, step)
    ]
    whole = CopyList([[(page.address, source.data_ptr(), source.nbytes)]])
    cut = {"a call each": CopyList([[one] for one in slices]), "one call": CopyList([slices])}
    for name, prefer_overlap in FLAGS.items():
        copier = CudaCopier(pair.driver, use_batches=True, prefer_overlap=prefer_overlap)
        lists = [whole, *cut.values()]
        plain, *times = median_seconds([lambda k=copier, c=c: copy(k, c) for c in lists])
        for calls, sliced in zip(cut, times, strict=True):
            say(
                f"slices of 64 MiB beside one copy, {calls}, {name}",
                ratio=round(plain / sliced, 4),
                plain_gb_per_s=round(source.nbytes / plain / 1e9, 1),
                at_least={"ratio": 0.97},
            )
    one_by_one = CudaCopier(pair.driver, use_batches=False)
    (plain,) = median_seconds([lambda: copy(one_by_one, whole)])
    say("one plain cuMemcpyDtoDAsync", gb_per_s=round(source.nbytes / plain / 1e9, 1))


def copy(copier, copies):
    stream = torch.cuda.current_stream().cuda_stream
    copier.wait(copier.submit(copies, stream), stream)


def prefetch(high_priority):
    """Steps in prefetch mode over the slower of their compute and their copies.

    Slots are empty at the start: the first layers of the first step are waited for.
    """
    rank = RankPair(gpu, SHAPES, num_layers=NUM_LAYERS, is_empty=True, high_priority=high_priority)
    a = torch.randn(4096, 4096, device="cuda").bfloat16()
    products = num_products(a, seconds(lambda: copy(rank.copier, rank.copies[0].everything)))

    def steps(mode):
        rank.scheduler.policy = Policy.always(mode)
        for layer in list(range(NUM_LAYERS)) * NUM_STEPS:
            taken = rank.scheduler.wait(layer, 1)
            for _ in range(products):
                a @ a
            rank.scheduler.release(layer, taken)

    def copy_all():
        for layer in list(range(NUM_LAYERS)) * NUM_STEPS:
            copy(rank.copier, rank.copies[layer].everything)

    works = [lambda: steps(FetchMode.PREFETCH), lambda: steps(FetchMode.DIRECT), copy_all]
    fetched, computed, copied = median_seconds(works, repeats=7, before=rank.scheduler.stop)
    num_runs = rank.counters.steps[FetchMode.PREFETCH] / NUM_STEPS
    say(
        f"{NUM_STEPS} prefetch steps, copies at {'high' if high_priority else 'low'} priority",
        ratio=round(fetched / max(computed, copied), 4),
        compute_ms=round(computed * 1e3, 2),
        copy_ms=round(copied * 1e3, 2),
        exposed_ms=round(sum(rank.counters.exposed_seconds) / num_runs * 1e3, 2),
        at_most={"ratio": 1.10},
    )


def num_products(a, target):
    one = median_seconds([lambda: a @ a])[0]
    return max(1, round(target / one))


def host_cost():
    """Of wait and release, eager, by mode; the GPU has ended a step before the next begins."""
    ids = torch.zeros(8, dtype=torch.int32, device="cuda")
    chosen = (ids.data_ptr(), ids.numel(), ids.element_size())
    for mode in FetchMode:
        pair.scheduler.policy = Policy.always(mode)
        times = []
        for step in range(60):
            for layer in range(NUM_LAYERS):
                start = time.perf_counter()
                taken = pair.scheduler.wait(layer, 1, chosen)
                pair.scheduler.release(layer, taken)
                times += [time.perf_counter() - start] if step > 10 else []
            torch.cuda.synchronize()
        median_us = round(statistics.median(times) * 1e6, 2)
        say(f"host cost of a layer, {mode}", median_us=median_us, at_most={"median_us": 15})


gpu = Gpu()
pair = RankPair(gpu, SHAPES, num_layers=NUM_LAYERS, is_empty=True)
bandwidth()
host_cost()
prefetch(high_priority=True)
prefetch(high_priority=False)
