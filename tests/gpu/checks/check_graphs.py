# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks steps that are captured in a graph and replayed, and prefetch steps after the replays.

Slots are filled with NaN before each replay. The ids of chosen experts change on the GPU between
replays, and the host doesn't learn them.
"""

import contextlib
import gc
import os
import time

import torch
from figures import say
from parts import Need, part, run_parts
from support.gpu_ranks import make_ranks

from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.rank.expert_counts import ExpertCounts

NUM_REPLAYS = int(os.environ.get("NUM_REPLAYS", "100"))
NUM_EXPERTS = 7
NUM_IDS = 6
GRAPHS = (Need.TORCH, Need.GRAPHS, Need.TRITON)


class CapturedRank:
    """Rank 0 of two, whose steps are captured and replayed as vLLM does it."""

    def __init__(self, device, mode):
        self._device = device
        self._driver = device.driver()
        self._mode = mode
        self.rank = make_ranks(device, num_experts=NUM_EXPERTS)[0]
        self.ids = torch.zeros(NUM_IDS, dtype=torch.int32, device="cuda")

    def capture(self):
        ids = self.ids if self._mode is FetchMode.SELECTIVE else None
        self.rank.step(self._mode, ids)  # compiles kernels before the capture
        assert self.rank.num_wrong_reads() == 0
        self.fence(self._mode)
        graph = torch.cuda.CUDAGraph()
        with no_garbage(), torch.cuda.graph(graph, stream=self._device.stream(self.rank.stream)):
            self.rank.step(self._mode, ids)
        self.fence(self._mode)
        return graph

    def fence(self, mode):
        """Call `fence_graph` as vLLM does around captures and replays of steps in this mode."""
        self.rank.scheduler.policy = Policy.always(mode, captured_tokens=1)
        with self._device.on(self.rank.stream):
            self.rank.scheduler.fence_graph()

    def poison(self):
        """Set all bits of the slots, which is NaN in every floating-point type."""
        torch.cuda.synchronize()
        for layer_idx in range(3):
            for tensor_idx in range(3):
                for _, page in self.rank.slots.pages(layer_idx, tensor_idx):
                    nan = torch.full((page.num_bytes,), 0xFF, dtype=torch.uint8, device="cuda")
                    self._driver.copy(page.address, nan.data_ptr(), nan.nbytes)

    def replay(self, graph):
        """Replay the graph over poisoned slots; returns the seconds that it takes on the host."""
        self.poison()
        self.fence(self._mode)
        start = time.perf_counter()
        with self._device.on(self.rank.stream):
            graph.replay()
        return time.perf_counter() - start


@contextlib.contextmanager
def no_garbage():
    """Collect no garbage in the `with` block: freeing device memory would break a capture."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def replay_all(device, mode):
    captured = CapturedRank(device, mode)
    graph = captured.capture()
    generator = torch.Generator().manual_seed(0)
    wrong, host_s = 0, []
    for _ in range(NUM_REPLAYS):
        captured.ids.copy_(torch.randint(0, NUM_EXPERTS, (NUM_IDS,), generator=generator))
        host_s.append(captured.replay(graph))
        wrong += captured.rank.num_wrong_reads(keep=True)
    captured.rank.num_wrong_reads()
    assert wrong == 0, f"{wrong} wrong reads in {NUM_REPLAYS} replays"
    prefetch_after(captured)
    host_us = round(sorted(host_s)[len(host_s) // 2] * 1e6, 1)
    say(f"graph, {mode}", replays=NUM_REPLAYS, host_us_per_replay=host_us)


def prefetch_after(captured):
    captured.fence(FetchMode.SELECTIVE)  # the scheduler forgets what the slots hold
    captured.poison()
    for _ in range(3):
        captured.rank.step(FetchMode.PREFETCH)
    wrong = captured.rank.num_wrong_reads()
    assert wrong == 0, f"{wrong} wrong reads in prefetch steps after the replays"


@part("captured direct steps", *GRAPHS)
def direct(device):
    replay_all(device, FetchMode.DIRECT)


@part("captured selective steps", *GRAPHS)
def selective(device):
    replay_all(device, FetchMode.SELECTIVE)


@part("counts of chosen experts in a captured step", *GRAPHS)
def counts(device):
    """Counts as ExpertCounts says, while a graph is replayed with other ids each time."""
    counted = ExpertCounts([NUM_EXPERTS], "cuda")
    ids = torch.zeros(NUM_IDS, dtype=torch.int32, device="cuda")
    counted.add(0, ids)  # loads the kernels before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counted.add(0, ids)
    counted.clear()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(-1, NUM_EXPERTS, (NUM_REPLAYS, NUM_IDS), generator=generator)
    for one in chosen:
        ids.copy_(one)
        graph.replay()
    torch.cuda.synchronize()
    expected = torch.bincount(chosen.flatten() + 1, minlength=NUM_EXPERTS + 1)[1:].tolist()
    assert counted.read() == [expected], (counted.read(), expected)
    say("counts of chosen experts", replays=NUM_REPLAYS)


if __name__ == "__main__":
    run_parts(direct, selective, counts)
