# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ranks of a group in one process, on the fake driver's GPUs: real blocks, views, slots, scheduler.

Kernels read what a layer's views show, in a stream; what they read is compared in the end.
"""

import weakref
from functools import partial

import torch

from vllm_dwdp._core import ChosenExperts, CudaCopier
from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.counters import FetchCounters
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.fetch.scheduler import FetchScheduler
from vllm_dwdp.layout import ExpertTensor, TensorLayout
from vllm_dwdp.memory.expert_views import ExpertViews
from vllm_dwdp.memory.local_shard import LocalShard
from vllm_dwdp.memory.slots import Slots
from vllm_dwdp.placement import Placement

EXPERT_BYTES = {"w13_weight": 3 * 4096 + 512, "w2_weight": 6144, "w13_scale": 24}
"""With boundary pages, and a tensor too small to share."""


def make_layers(num_layers, num_experts):
    """Per layer: tensors [num_experts, bytes] by name, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            name: torch.randint(0, 255, (num_experts, row), dtype=torch.uint8, generator=generator)
            for name, row in EXPERT_BYTES.items()
        }
        for _ in range(num_layers)
    ]


def layouts_of(layers, placement, granularity):
    return [
        tuple(
            TensorLayout(ExpertTensor(name, t[0].nbytes), placement, granularity)
            for name, t in tensors.items()
        )
        for tensors in layers
    ]


def adopt(driver, layouts, layers, rank):
    shard = LocalShard(driver, layouts, rank)
    for layer_idx, tensors in enumerate(layers):
        local = layouts[layer_idx][0].placement.local_experts(rank)
        rows = [t[local.start : local.stop].clone() for t in tensors.values()]
        shard.adopt_layer([row.data_ptr() for row in rows])
    shard.seal()
    return shard


class GpuRank:
    """One rank that has met its peers. pull: see ExpertViews."""

    def __init__(self, fake, driver, layouts, layers, shard, rank, pull, *, num_slots, **options):
        self._fake = fake
        self._layers = layers
        self.stream = fake.make_stream()
        weakref.finalize(self, fake.destroy_stream, self.stream)
        views = ExpertViews(driver, layouts, shard, rank, pull)
        indices = range(len(layers))
        direct = [views.build(i) for i in indices]
        self._slots = slots = Slots(
            driver, layouts, rank=rank, num_slots=num_slots, slice_bytes=8192
        )
        on_slot = [views.build_on_slot(i, slots) for i in indices]
        self._views = {FetchMode.DIRECT: direct, FetchMode.PREFETCH: on_slot}
        copier = CudaCopier(driver, **options)
        self.counters = FetchCounters(len(layers), layouts[0][0].placement.dwdp_size)
        self.scheduler = FetchScheduler(
            [slots.copies(i, direct[i], partial(ChosenExperts, copier)) for i in indices],
            num_slots=num_slots,
            copier=copier,
            policy=Policy.always(FetchMode.PREFETCH),
            counters=self.counters,
            current_stream=lambda: self.stream,
        )
        self._reads = []

    def step(self, mode=FetchMode.PREFETCH):
        self.scheduler.policy = Policy.always(mode)
        for layer in range(len(self._layers)):
            self.run(layer)

    def run(self, layer):
        """Wait, a kernel that reads every byte of the layer's views, release."""
        mode = self.scheduler.wait(layer, 1)
        tensors = self._layers[layer].values()
        for view, expected in zip(self._views[mode][layer], tensors, strict=True):
            into = torch.zeros(expected.nbytes, dtype=torch.uint8)
            assert self._fake.read(self.stream, view.address, into) == 0
            self._reads.append((into, expected))
        self.scheduler.release(layer, mode)

    def num_wrong_reads(self):
        """Of all kernels so far."""
        assert self._fake.synchronize(self.stream) == 0
        wrong = sum(not torch.equal(into, expected.flatten()) for into, expected in self._reads)
        self._reads.clear()
        return wrong


def make_ranks(fake, *, num_layers=3, num_experts=7, dwdp_size=2, num_slots=2, **options):
    """All ranks of a group, handing each other descriptors."""
    placement = Placement.make(num_experts=num_experts, dwdp_size=dwdp_size)
    layers = make_layers(num_layers, num_experts)
    drivers = [fake.driver(rank % 2) for rank in range(dwdp_size)]
    layouts = layouts_of(layers, placement, drivers[0].granularity)
    shards = [adopt(drivers[rank], layouts, layers, rank) for rank in range(dwdp_size)]

    def pull(peer, layer_idx, expected_sizes):
        return [fd for fd, _ in shards[peer].descriptors(layer_idx)]

    return [
        GpuRank(
            fake,
            drivers[rank],
            layouts,
            layers,
            shards[rank],
            rank,
            pull,
            num_slots=num_slots,
            **options,
        )
        for rank in range(dwdp_size)
    ]
