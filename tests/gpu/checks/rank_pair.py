# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Rank 0 of two ranks with memory on one device; rank 1 only owns the experts that rank 0 lacks.

With dwdp_size 1 rank 0 is alone, and lacks the experts in host memory.
"""

import dataclasses
import time

import torch

from vllm_dwdp._core import CudaCopier, HandleType
from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.counters import FetchCounters
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.fetch.scheduler import FetchScheduler
from vllm_dwdp.layout.copies import gpu_slice_bytes
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout
from vllm_dwdp.rank.experts import RankExperts


class RankPair:
    """Rank 0 with its views and slots; `make_scheduler` makes its scheduler.

    rows: by tensor name, the bytes of an expert. weights: for each layer, by name, tensors
    [num_experts, ...] in CPU memory; by default every byte is zero.
    """

    def __init__(
        self,
        device,
        rows,
        *,
        num_experts,
        num_layers,
        weights=None,
        num_slots=2,
        dwdp_size=2,
        host_experts=0,
        slice_bytes=None,
        driver=None,
    ):
        self.device = device
        self.driver = driver or device.driver()
        self.weights = weights
        self.stream = device.make_stream()
        placement = Placement.make(
            num_experts=num_experts, dwdp_size=dwdp_size, host_experts=host_experts
        )
        layout = tuple(
            TensorLayout(ExpertTensor(name, row_bytes), placement, self.driver.granularity)
            for name, row_bytes in rows.items()
        )
        self.layout = RankLayout((layout,) * num_layers, 0, num_slots)
        ranks = [self._adopt(rank) for rank in range(dwdp_size)]

        def take_handles(peer, parcel, expected_sizes):
            blocks = ranks[peer].handles(HandleType.FILE_DESCRIPTOR, parcel)
            return [fd for fd, _ in blocks]

        start = time.perf_counter()
        experts = self.experts = ranks[0]
        experts.connect(take_handles)
        self.direct = experts.direct
        self.seconds_to_attach = time.perf_counter() - start
        missing = max(map(self.layout.missing_bytes, range(num_layers)))
        slice_bytes = slice_bytes or gpu_slice_bytes(missing)
        self.slots = experts.make_slots(num_slots, slice_bytes=slice_bytes)
        self.on_slot = [experts.build_on_slot(i) for i in range(num_layers)]
        self.seconds_to_bind = time.perf_counter() - start
        self.num_maps = experts.views.num_maps
        self.num_private_bytes = experts.views.num_private_bytes

    @classmethod
    def of_pages(cls, device, pages_of_a_row, **options):
        """A pair whose experts have so many pages of the driver, by tensor name."""
        page = device.driver().granularity
        return cls(device, {n: int(pages * page) for n, pages in pages_of_a_row.items()}, **options)

    @classmethod
    def of_weights(cls, device, weights, **options):
        """A pair with these weights; see the class."""
        rows = {name: tensor[0].nbytes for name, tensor in weights[0].items()}
        num_experts = len(next(iter(weights[0].values())))
        return cls(
            device,
            rows,
            num_experts=num_experts,
            num_layers=len(weights),
            weights=weights,
            **options,
        )

    def make_scheduler(self, make_chosen=lambda experts: None, **options):
        """options: of the copier. make_chosen: see RankExperts.copies."""
        self.copier = CudaCopier(self.driver, **options)
        self.copies = self.experts.copies(make_chosen)
        self.counters = FetchCounters(self.layout.num_layers, self.layout.num_ranks)
        self.scheduler = FetchScheduler(
            self.copies,
            num_slots=self.slots.num_slots,
            copier=self.copier,
            policy=Policy.always(FetchMode.PREFETCH),
            counters=self.counters,
            current_stream=lambda: self.stream,
            make_waits=self.device.make_waits,
        )
        return self.scheduler

    def copy(self, copies):
        """Submit a copy list, and make the pair's stream wait for it."""
        self.copier.wait(self.copier.submit(copies, self.stream), self.stream)

    def tensors(self, views, layer_idx):
        """By name, tensors over a layer's views, with the types and shapes of its weights."""
        shown = zip(views[layer_idx], self.weights[layer_idx].items(), strict=True)
        return {name: _like(view, weight) for view, (name, weight) in shown}

    def _adopt(self, rank):
        experts = RankExperts(self.driver, dataclasses.replace(self.layout, rank=rank))
        local = self.layout.placement.local_experts(rank)
        for layer_idx, layout in enumerate(self.layout.layouts):
            if self.weights:
                weights = self.weights[layer_idx].values()
                rows = [w[local.start : local.stop].contiguous() for w in weights]
            else:
                rows = self._zeros(tuple(len(local) * t.tensor.expert_bytes for t in layout))
            experts.adopt_layer([row.data_ptr() for row in rows])
        experts.seal()
        return experts

    def _zeros(self, sizes):
        """Zeros of these sizes in bytes; all layers get the same memory."""
        if getattr(self, "_zeros_of", None) != sizes:
            self._zeros_of = sizes
            self._zero_rows = [self.device.zeros(num_bytes) for num_bytes in sizes]
        return self._zero_rows


def _like(view, weight):
    shown = torch.from_dlpack(view.bytes_tensor())[: weight.nbytes]
    return shown.view(weight.dtype).view(weight.shape)
