# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a rank pays to attach a model of DeepSeek-R1's shape; the last line is JSON.

    python tests/bench/attach.py [--ranks 2 4 8 16] [--layers 58] [--experts 256]

Every rank is a process of this machine with `RankExperts` on host memory, meets the others as the
ranks of an engine do, and builds its views and slots. Rows are 8 KiB and 4 KiB, so that owners meet
at page boundaries as they do in a real model, and 256 experts of 58 layers fit into any machine.

* cpu_s: CPU seconds of one rank for taking handles, building views and planning copies.
* maps: mappings of one rank.
* pss_mib: the most that /proc/self/smaps_rollup said after adoption, views and slots.

Each is the median of the ranks; growth is that of the figure where the ranks double.
"""

import argparse
import json
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import itertools

from support.rank_session import make_manifest, make_session

from vllm_dwdp._core import ChosenExperts, HostCopier
from vllm_dwdp.bench.ports import free_port
from vllm_dwdp.device import HostMemory
from vllm_dwdp.group.handover.peer_probe import PeerProbe
from vllm_dwdp.group.session import GroupSession
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout
from vllm_dwdp.memory.limits import ensure_descriptors, num_descriptors_needed
from vllm_dwdp.rank.experts import RankExperts

ROW_BYTES = {"w13_weight": 8 << 10, "w2_weight": 4 << 10}
NUM_SLOTS, SLICE_BYTES = 2, 1 << 20
Figures = dict[str, float]


class Rank:
    """One rank of the group, in a process of its own."""

    def __init__(self, args: argparse.Namespace, rank: int, size: int, port: int) -> None:
        self._session: GroupSession = make_session(rank, size, port)
        self._memory = HostMemory(rank)
        self._placement = Placement.make(num_experts=args.experts, dwdp_size=size)
        page = self._memory.driver.granularity
        layouts = tuple(
            TensorLayout(ExpertTensor(name, num_bytes), self._placement, page)
            for name, num_bytes in ROW_BYTES.items()
        )
        layout = RankLayout((layouts,) * args.layers, rank, NUM_SLOTS)
        self._experts = RankExperts(self._memory.driver, layout, self._memory.slot_driver)
        self._pss = [0.0]
        self._cpu_s = 0.0

    def run(self, rank: int) -> Figures:
        self._session.open()
        self._session.try_peers(PeerProbe(self._memory.driver, job_rank=rank))
        self._adopt()
        self._session.meet(make_manifest(self._memory.driver, self._placement))
        layout = self._experts.layout
        ensure_descriptors(num_descriptors_needed(layout, has_files=True))
        self._session.hand_over(self._experts.handles, num_parcels=layout.num_parcels)
        self._timed(lambda: self._experts.connect(self._session.take_handles))
        self._session.finish()
        self._timed(self._bind)
        maps = self._experts.views.num_maps + self._slot_maps
        return {"cpu_s": self._cpu_s, "maps": maps, "pss_mib": max(self._pss)}

    def _adopt(self) -> None:
        num_local = len(self._placement.local_experts(self._experts.layout.rank))
        rows = [torch.ones(num_local * n, dtype=torch.uint8) for n in ROW_BYTES.values()]
        for _ in range(self._experts.layout.num_layers):
            self._experts.adopt_layer([row.data_ptr() for row in rows])
        self._experts.seal()
        self._pss.append(pss_mib())

    def _bind(self) -> None:
        """Slots, views of them, and the plans of copies."""
        layout = self._experts.layout
        slots = self._experts.make_slots(NUM_SLOTS, slice_bytes=SLICE_BYTES)
        self._slot_maps = slots.num_maps
        self._kept = [self._experts.build_on_slot(i) for i in range(layout.num_layers)]
        copier = HostCopier(num_threads=1, cores=[0])
        self._copies = self._experts.copies(
            lambda experts: ChosenExperts(copier, experts, layout.num_ranks)
        )

    def _timed(self, work: Callable[[], None]) -> None:
        start = time.process_time()
        work()
        self._cpu_s += time.process_time() - start
        self._pss.append(pss_mib())


def pss_mib() -> float:
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)[0]) / 1024


def run_rank(args: argparse.Namespace, rank: int, size: int, port: int, found: object) -> None:
    found.put(Rank(args, rank, size, port).run(rank))  # type: ignore[attr-defined]


def measure(args: argparse.Namespace, size: int) -> Figures:
    """Medians of the ranks of one group."""
    context = multiprocessing.get_context("spawn")
    found, port = context.SimpleQueue(), free_port()
    ranks = [
        context.Process(target=run_rank, args=(args, rank, size, port, found))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        sys.exit(f"a rank of {size} failed, see above")
    of_ranks = [found.get() for _ in ranks]
    return {
        name: round(statistics.median(one[name] for one in of_ranks), 3) for name in of_ranks[0]
    }


def growth(results: dict[int, Figures]) -> dict[str, Figures]:
    """By "N to 2N" how many times each figure became as large."""
    sizes = sorted(results)
    return {
        f"{size} to {larger}": {
            name: round(results[larger][name] / results[size][name], 2) for name in results[size]
        }
        for size, larger in itertools.pairwise(sizes)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--layers", type=int, default=58)
    parser.add_argument("--experts", type=int, default=256)
    args = parser.parse_args()
    results = {}
    for size in args.ranks:
        results[size] = measure(args, size)
        print(f"{size} ranks: {results[size]}", flush=True)
    print(json.dumps({"ranks": results, "growth": growth(results)}))


if __name__ == "__main__":
    main()
