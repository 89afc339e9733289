# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A group has its experts in memory once, and loading takes a rank's shard and one layer more.

The test measures both in /proc, where it counts shared pages once.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from bench.random_moe import RandomMoe
from moe_checkpoints import change, fuse
from support.memory_samples import Sample, Sampler

from vllm_dwdp.device.numa import read_numa_nodes
from vllm_dwdp.memory.residency import group_resident_bytes

pytestmark = pytest.mark.whole

HOLD = Path(__file__).parents[1] / "hold_experts.py"
MODEL = RandomMoe()
"""Most weights are experts, since vLLM needs memory of its own to repack dense weights."""
LOADING = re.compile(r"Worker pid=(\d+)\).*Starting to load model")
BOUND = re.compile(r"Worker pid=(\d+)\).*DWDP rank (\d+) of")
SLACK_BYTES = 4 << 20
"""Room for the originals of dense weights that vLLM repacks: glibc keeps the small ones until
adoption begins."""


@dataclass
class Load:
    """One rank's memory from its first sample until its experts were bound."""

    rank: int
    stats: dict
    samples: list[Sample] = field(repr=False)

    @property
    def layer_bytes(self):
        return self.stats["expert_bytes_owned"] // self.stats["num_layers"]

    @property
    def dense_bytes(self):
        return self.stats["bytes_read"] - self.stats["expert_bytes_read"]

    @property
    def start_bytes(self):
        return self.samples[0].bytes_of(self.rank)

    @property
    def peak_bytes(self):
        return max(sample.bytes_of(self.rank) for sample in self.samples)

    @property
    def settled_bytes(self):
        """Memory after binding. Own files may be closed by then, so statistics give their size."""
        return self.samples[-1].anonymous_bytes + self.stats["expert_bytes_owned"]

    def timeline(self):
        """(seconds, MiB of anonymous pages, MiB of own files) for each change of at least 4 MiB."""
        entries = []
        for s in self.samples:
            sizes = s.anonymous_bytes >> 20, s.file_bytes.get(self.rank, 0) >> 20
            if not entries or any(
                abs(a - b) >= 4 for a, b in zip(sizes, entries[-1][1:], strict=True)
            ):
                entries.append((round(s.at_s - self.samples[0].at_s, 3), *sizes))
        return entries


@dataclass
class Held:
    """Measurements of a job in which every rank has answered a prompt."""

    log: str
    resident_bytes: int
    loads: list[Load]


def hold(model, num_ranks):
    command = [sys.executable, str(HOLD), str(model), "--ranks", str(num_ranks)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, **pipes) as job:
        sampler = Sampler()
        sampler.start()
        try:
            log, bound, stats = follow(job.stdout, sampler)
            resident_bytes = group_resident_bytes(pid for pid, _ in bound.values())
        finally:
            sampler.stop()
            job.communicate(timeout=60)
    loads = [
        Load(rank, stats[rank], [s for s in sampler.samples[pid] if s.at_s <= bound_s])
        for rank, (pid, bound_s) in sorted(bound.items())
    ]
    return Held(log, resident_bytes, loads)


def follow(lines, sampler):
    """Read the job's log until all ranks have answered.

    Returns the log, by rank the (pid, time) at which it bound its experts, and the statistics.
    """
    log, bound = [], {}
    for line in lines:
        log.append(line)
        if found := LOADING.search(line):
            sampler.watch(int(found[1]))
        if found := BOUND.search(line):
            bound[int(found[2])] = int(found[1]), time.monotonic()
        if line.startswith("HELD"):
            return "".join(log), bound, json.loads(line.removeprefix("HELD"))
    raise AssertionError("".join(log)[-4000:])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    assert MODEL.num_expert_params >= 400e6
    return MODEL.write(tmp_path_factory.mktemp("random_moe") / "model")


@pytest.fixture(scope="module")
def fused_checkpoint(checkpoint, tmp_path_factory):
    return change(shutil.copytree(checkpoint, tmp_path_factory.mktemp("fused") / "model"), fuse)


@pytest.fixture(
    scope="module", params=[("checkpoint", 2), ("fused_checkpoint", 4)], ids="{0[0]}".format
)
def held(request):
    checkpoint, num_ranks = request.param
    held = hold(request.getfixturevalue(checkpoint), num_ranks)
    assert len(held.loads) == num_ranks
    assert all(any(load.stats["forwards"]) for load in held.loads)
    return held


def test_group_holds_the_experts_once(held):
    private_bytes = sum(load.stats["expert_bytes_private"] for load in held.loads)
    ratio = (held.resident_bytes + private_bytes) / MODEL.expert_bytes
    print(f"resident expert bytes: {ratio:.4f} of the model's")
    assert 0.99 <= ratio <= 1.02


def test_loading_needs_the_shard_and_one_layer(held):
    for load in held.loads:
        over = load.peak_bytes - load.settled_bytes
        print(f"rank {load.rank}: {over / 2**20:.1f} MiB, a layer is {load.layer_bytes >> 20} MiB")
        assert over <= load.layer_bytes + SLACK_BYTES, str(load.timeline())


def test_originals_of_the_experts_are_given_back(held):
    for load in held.loads:
        grown = load.settled_bytes - load.start_bytes
        owned = load.stats["expert_bytes_owned"]
        assert owned / 2 <= grown <= owned + load.dense_bytes + load.layer_bytes


def test_experts_are_placed_on_the_ranks_numa_node(held):
    nodes = read_numa_nodes()
    if len(nodes) == 1:
        assert [load.stats["numa_node"] for load in held.loads] == list(nodes) * len(held.loads)
    assert held.log.count("expected expert memory on NUMA node") in (0, len(held.loads))
