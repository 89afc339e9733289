# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ranks of a group in one process, with real blocks, views, slots and schedulers on one device.

The device is the fake driver (FakeCuda) or a GPU (tests/gpu/gpu.py). Its kernels read what views
show, and `num_wrong_reads` compares the bytes that they read with the experts.
"""

import weakref

import torch

from vllm_dwdp._core import CudaCopier, HandleType
from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.base import ChosenIds
from vllm_dwdp.fetch.counters import FetchCounters
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.fetch.scheduler import FetchScheduler
from vllm_dwdp.layout.extra_experts import choose_pages, with_extra_experts
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout
from vllm_dwdp.rank.experts import RankExperts


def make_layers(num_layers, num_experts, page):
    """For each layer, tensors [num_experts, bytes] by name; the same in every process.

    The weights have boundary pages, and w13_scale is too small to share.
    """
    rows = {"w13_weight": 3 * page + page // 8, "w2_weight": page * 3 // 2, "w13_scale": 24}
    generator = torch.Generator().manual_seed(0)
    return [
        {
            name: torch.randint(0, 255, (num_experts, row), dtype=torch.uint8, generator=generator)
            for name, row in rows.items()
        }
        for _ in range(num_layers)
    ]


def layouts_of(layers, placement, granularity):
    return tuple(
        tuple(
            TensorLayout(ExpertTensor(name, t[0].nbytes), placement, granularity)
            for name, t in tensors.items()
        )
        for tensors in layers
    )


def keep_chosen(of_ranks, counts):
    """The layouts of all ranks of a group that keep copies of all experts in their counts."""
    wishes = [
        choose_pages(layout, of_rank, num_bytes=1 << 60, max_experts=1 << 60)
        for layout, of_rank in zip(of_ranks, counts, strict=True)
    ]
    return [with_extra_experts(layout, wishes) for layout in of_ranks]


def adopt(driver, layout, layers):
    experts = RankExperts(driver, layout)
    local = layout.placement.local_experts(layout.rank)
    for tensors in layers:
        rows = [t[local.start : local.stop].clone() for t in tensors.values()]
        experts.adopt_layer([row.data_ptr() for row in rows])
    experts.seal()
    return experts


class GpuRank:
    """One rank, with views, slots and a scheduler.

    take_handles: see ExpertViews. gpu: the number of its driver's GPU. options: of the copier.
    """

    def __init__(self, device, driver, experts, layers, take_handles, *, gpu, **options):
        layout = experts.layout
        self._device = device
        self._layers = layers
        self.driver = driver
        self.stream = device.make_stream(gpu)
        weakref.finalize(self, device.destroy_stream, self.stream)
        experts.connect(take_handles)
        self.slots = experts.make_slots(layout.num_slots, slice_bytes=2 * driver.granularity)
        on_slot = [experts.build_on_slot(i) for i in range(layout.num_layers)]
        self._views = {
            FetchMode.DIRECT: experts.direct,
            FetchMode.PREFETCH: on_slot,
            FetchMode.SELECTIVE: on_slot,
        }
        copier = CudaCopier(driver, **options)
        self.counters = FetchCounters(layout.num_layers, layout.num_ranks)
        chosen = device.make_chosen(copier, layout.num_ranks)
        self.scheduler = FetchScheduler(
            experts.copies(chosen),
            num_slots=layout.num_slots,
            copier=copier,
            policy=Policy.always(FetchMode.PREFETCH),
            counters=self.counters,
            current_stream=lambda: self.stream,
        )
        self._reads = []

    def step(self, mode=FetchMode.PREFETCH, ids=None):
        """Run all layers. ids: the experts that a selective step chooses, on the device."""
        self.scheduler.policy = Policy.always(mode)
        for layer in range(len(self._layers)):
            self.run(layer, ids)

    def run(self, layer, ids=None):
        """Run one layer: wait, read every byte of its views with kernels, release."""
        with self._device.on(self.stream):
            self._run(layer, ids)

    def _run(self, layer, ids):
        address = None
        if ids is not None:
            address = ChosenIds(ids.data_ptr(), ids.numel(), ids.element_size())
        mode = self.scheduler.wait(layer, 1, address)
        tensors = self._layers[layer].values()
        for view, expected in zip(self._views[mode][layer], tensors, strict=True):
            found = self._device.read(self.stream, view, expected.nbytes)
            self._reads.append((found, expected, ids))
        self.scheduler.release(layer, mode)

    def num_wrong_reads(self, *, keep=False):
        """The number of wrong reads so far, which are then forgotten.

        keep: forget none, since a graph will read into the same memory again.
        """
        self._device.synchronize(self.stream)
        wrong = sum(not _is_right(*read) for read in self._reads)
        if not keep:
            self._reads.clear()
        return wrong


def _is_right(found, expected, ids):
    rows, expected = found.view(expected.shape), expected.to(found.device)
    if ids is None:
        return torch.equal(rows, expected)
    chosen = ids.unique().long().to(found.device)
    return torch.equal(rows[chosen], expected[chosen])


def make_ranks(
    device,
    *,
    num_layers=3,
    num_experts=7,
    dwdp_size=2,
    num_slots=2,
    host_experts=0,
    counts=None,
    handle_type=HandleType.FILE_DESCRIPTOR,
    **options,
):
    """All ranks of a group; they take each other's handles.

    counts: of chosen experts, by rank, layer and expert; ranks keep copies of all chosen ones.
    """
    placement = Placement.make(
        num_experts=num_experts, dwdp_size=dwdp_size, host_experts=host_experts
    )
    drivers = [device.driver(rank) for rank in range(dwdp_size)]
    page = drivers[0].granularity
    layers = make_layers(num_layers, num_experts, page)
    layouts = layouts_of(layers, placement, page)
    of_ranks = [RankLayout(layouts, rank, num_slots) for rank in range(dwdp_size)]
    if counts is not None:
        of_ranks = keep_chosen(of_ranks, counts)
    experts = [adopt(drivers[rank], of_ranks[rank], layers) for rank in range(dwdp_size)]

    def take_handles(peer, parcel, expected_sizes):
        return [handle for handle, _ in experts[peer].handles(handle_type, parcel)]

    return [
        GpuRank(
            device,
            drivers[rank],
            experts[rank],
            layers,
            take_handles,
            gpu=rank,
            **options,
        )
        for rank in range(dwdp_size)
    ]
