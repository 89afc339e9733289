# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Steps captured in a graph and replayed, slots poisoned before each; prefetch between replays.

The gather kernel reads other ids at each replay: experts are chosen on the GPU alone.
"""

import contextlib
import gc
import sys
import time

import torch
from figures import say
from gpu import Gpu
from gpu_ranks import make_ranks

from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.policy import Policy

NUM_REPLAYS = int(sys.argv[1]) if len(sys.argv) > 1 else 100
NUM_EXPERTS = 7


def poison(rank):
    """All bits set: NaN in every floating-point type."""
    torch.cuda.synchronize()
    for layer_idx in range(3):
        for tensor_idx in range(3):
            for _, page in rank.slots.pages(layer_idx, tensor_idx):
                nan = torch.full((page.num_bytes,), 0xFF, dtype=torch.uint8, device="cuda")
                driver.copy(page.address, nan.data_ptr(), nan.nbytes)


def fence(rank, mode):
    """As vLLM does around captures and replays, by the policy that captured steps follow."""
    rank.scheduler.policy = Policy.always(mode, captured_tokens=1)
    with gpu.on(rank.stream):
        rank.scheduler.fence_graph()


@contextlib.contextmanager
def no_garbage():
    """Memory that went during a capture would break it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def capture(rank, mode, ids):
    rank.step(mode, ids)  # compiles, outside of the capture
    assert rank.num_wrong_reads() == 0
    fence(rank, mode)
    graph = torch.cuda.CUDAGraph()
    with no_garbage(), torch.cuda.graph(graph, stream=gpu.stream(rank.stream)):
        rank.step(mode, ids)
    fence(rank, mode)
    return graph


def replay(rank, mode):
    ids = torch.zeros(6, dtype=torch.int32, device="cuda")
    graph = capture(rank, mode, ids if mode is FetchMode.SELECTIVE else None)
    wrong, host = 0, []
    generator = torch.Generator().manual_seed(0)
    for _ in range(NUM_REPLAYS):
        ids.copy_(torch.randint(0, NUM_EXPERTS, (6,), generator=generator))
        poison(rank)
        fence(rank, mode)
        start = time.perf_counter()
        with gpu.on(rank.stream):
            graph.replay()
        host.append(time.perf_counter() - start)
        wrong += rank.num_wrong_reads(keep=True)
    rank.num_wrong_reads()
    return wrong, sorted(host)[len(host) // 2] * 1e6


gpu = Gpu()
driver = gpu.driver()
for mode in (FetchMode.DIRECT, FetchMode.SELECTIVE):
    rank = make_ranks(gpu, num_experts=NUM_EXPERTS)[0]
    wrong, host_us = replay(rank, mode)
    fence(rank, FetchMode.SELECTIVE)  # whatever the slots hold is forgotten
    poison(rank)
    for _ in range(3):
        rank.step(FetchMode.PREFETCH)
    after = rank.num_wrong_reads()
    say(
        f"graph, {mode}",
        replays=NUM_REPLAYS,
        wrong=wrong,
        wrong_prefetch_after=after,
        host_us_per_replay=round(host_us, 1),
        at_most={"wrong": 0, "wrong_prefetch_after": 0},
    )
    del rank
