# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures how much copy time prefetch hides behind compute, and what the scheduler costs.

The experts of two ranks lie in real memory files. Rank 0 computes on one core (matrix products that
stay in cache) and copies on another. A layer's compute takes --ratio times as long as its copy. The
last line of the output is JSON. Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from vllm_dwdp._core import ChosenExperts, CopyList, HandleType, HostCopier, HostDriver
from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.base import ChosenIds
from vllm_dwdp.fetch.counters import FetchCounters
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.fetch.scheduler import FetchScheduler
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout
from vllm_dwdp.memory.handle import Handle
from vllm_dwdp.rank.experts import RankExperts

MATRIX = 128
NUM_IDS = 64


class Rank:
    """Rank 0 of two, with `num_layers` layers of one expert tensor."""

    def __init__(self, args: argparse.Namespace, copier: HostCopier) -> None:
        driver = HostDriver(name="dwdp-bench")
        placement = Placement.make(num_experts=args.experts, dwdp_size=2)
        tensor = ExpertTensor("w13_weight", args.expert_bytes)
        layouts = ((TensorLayout(tensor, placement, driver.granularity),),) * args.layers
        weights = torch.ones(placement.num_experts * args.expert_bytes // 2, dtype=torch.uint8)
        slot_driver = HostDriver(name="dwdp-bench-slots")
        self.ranks = [RankExperts(driver, RankLayout(layouts, r), slot_driver) for r in range(2)]
        for rank in self.ranks:
            for _ in range(args.layers):
                rank.adopt_layer([weights.data_ptr()])
            rank.seal()

        def take_handles(peer: int, parcel: int, expected: object) -> list[Handle]:
            blocks = self.ranks[peer].handles(HandleType.FILE_DESCRIPTOR, parcel)
            return [fd for fd, _ in blocks]

        own = self.ranks[0]
        own.connect(take_handles)
        own.make_slots(args.slots, slice_bytes=args.slice_bytes)
        self.copies = own.copies(lambda experts: ChosenExperts(copier, experts, 2))
        self.counters = FetchCounters(args.layers, 2)
        self.scheduler = FetchScheduler(
            self.copies,
            num_slots=args.slots,
            copier=copier,
            policy=Policy.always(FetchMode.PREFETCH),
            counters=self.counters,
        )


def compute(num_products: int) -> None:
    matrix = torch.ones(MATRIX, MATRIX)
    for _ in range(num_products):
        matrix @ matrix


def copy_seconds(rank: Rank, copier: HostCopier) -> float:
    """Median time to copy all experts that a layer lacks, while nothing else runs."""
    seconds = []
    for _ in range(3):
        for copies in rank.copies:
            start = time.perf_counter()
            copier.wait(copier.submit(copies.everything))
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def products_in(seconds: float) -> int:
    """The number of matrix products that take this long."""
    compute(200)
    start = time.perf_counter()
    compute(2000)
    return max(1, round(seconds * 2000 / (time.perf_counter() - start)))


def exposed_share(rank: Rank, num_products: int, steps: int, copy_s: float) -> float:
    """The share of the copy time that layers waited for; the median over steps."""
    rank.scheduler.start()
    shares = []
    num_layers = len(rank.copies)
    for _ in range(steps):
        before = sum(rank.counters.exposed_seconds)
        for layer in range(num_layers):
            mode = rank.scheduler.wait(layer, 1)
            compute(num_products)
            rank.scheduler.release(layer, mode)
        shares.append((sum(rank.counters.exposed_seconds) - before) / (copy_s * num_layers))
    return statistics.median(shares[1:])


def hook_microseconds(mode: FetchMode) -> float:
    """Median time of `wait` and `release` for one layer that has nothing to copy."""
    copier = HostCopier()
    ids = torch.arange(NUM_IDS, dtype=torch.int32)
    none = SimpleNamespace(
        everything=CopyList([]),
        chosen=ChosenExperts(copier, [[] for _ in range(NUM_IDS)], 2),  # no expert is missing
        bytes_by_peer=(0, 0),
        num_slices=1,
    )
    scheduler = FetchScheduler(
        [none] * 58,
        num_slots=2,
        copier=copier,
        policy=Policy.always(mode),
        counters=FetchCounters(58, 2),
    )
    chosen = ChosenIds(ids.data_ptr(), ids.numel(), ids.element_size())
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        for layer in range(58):
            scheduler.release(layer, scheduler.wait(layer, 1, chosen))
        seconds.append((time.perf_counter() - start) / 58)
    return statistics.median(seconds) * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--expert-bytes", type=int, default=1 << 20)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--slice-bytes", type=int, default=1 << 20)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--ratio", type=float, default=2.0, help="compute over copy")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print(f"{Path(__file__).name} needs two cores, got {len(cores)}")
        return 1
    copier = HostCopier(num_threads=1, cores=[cores[1]])
    os.sched_setaffinity(0, {cores[0]})
    torch.set_num_threads(1)
    rank = Rank(args, copier)
    copy_s = copy_seconds(rank, copier)
    num_products = products_in(args.ratio * copy_s)
    exposed = exposed_share(rank, num_products, args.steps, copy_s)
    hooks = {mode.value: round(hook_microseconds(mode), 2) for mode in FetchMode}
    missing = sum(rank.copies[0].bytes_by_peer)
    print(f"configuration: {vars(args)}, compute on core {cores[0]}, copier on core {cores[1]}")
    print(f"a layer's copy: {missing / 2**20:.1f} MiB in {copy_s * 1e3:.2f} ms")
    print(f"hidden: {1 - exposed:.1%} of the copy time; hooks, us per layer: {hooks}")
    print(json.dumps({"hidden": round(1 - exposed, 4), "hook_us": hooks}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
