# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Rank 0 of two on one GPU, with weights of given shapes; rank 1's memory is a peer's."""

import time
from math import prod

import torch
from gpu import bytes_of

from vllm_dwdp._core import CudaCopier, HandleType
from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.counters import FetchCounters
from vllm_dwdp.fetch.policy import Policy
from vllm_dwdp.fetch.scheduler import FetchScheduler
from vllm_dwdp.fetch.waits import GpuWaits
from vllm_dwdp.layout import ExpertTensor, TensorLayout
from vllm_dwdp.memory.expert_views import ExpertViews
from vllm_dwdp.memory.local_shard import LocalShard
from vllm_dwdp.memory.slots import Slots
from vllm_dwdp.placement import Placement


class RankPair:
    """shapes: [num_experts, ...] of bf16 tensors by name. Random weights unless `is_empty`."""

    def __init__(
        self,
        gpu,
        shapes,
        *,
        num_layers,
        num_slots=2,
        slice_bytes=1 << 30,
        is_empty=False,
        **options,
    ):
        self.driver = gpu.driver()
        self._shapes = shapes
        num_experts = next(iter(shapes.values()))[0]
        placement = Placement.make(num_experts=num_experts, dwdp_size=2)
        layout = tuple(
            TensorLayout(ExpertTensor(name, 2 * prod(shape[1:])), placement, self.page)
            for name, shape in shapes.items()
        )
        self.layouts = [layout] * num_layers
        self.weights = [] if is_empty else [self._random() for _ in range(num_layers)]
        shards = [self._adopt(rank, placement) for rank in range(2)]

        def pull(peer, layer_idx, expected_sizes):
            blocks = shards[peer].handles(HandleType.FILE_DESCRIPTOR, layer_idx)
            return [fd for fd, _ in blocks]

        start = time.perf_counter()
        views = ExpertViews(self.driver, self.layouts, shards[0], 0, pull)
        self.direct = [views.build(i) for i in range(num_layers)]
        self.seconds_to_attach = time.perf_counter() - start
        self.slots = Slots(
            self.driver, self.layouts, rank=0, num_slots=num_slots, slice_bytes=slice_bytes
        )
        self.on_slot = [views.build_on_slot(i, self.slots) for i in range(num_layers)]
        self.seconds_to_bind = time.perf_counter() - start
        self.num_maps = views.num_maps
        self.num_private_bytes = views.num_private_bytes
        self.copier = CudaCopier(self.driver, **options)
        chosen = gpu.make_chosen(self.copier, 2)
        self.copies = [self.slots.copies(i, self.direct[i], chosen) for i in range(num_layers)]
        self.counters = FetchCounters(num_layers, 2)
        self.scheduler = FetchScheduler(
            self.copies,
            num_slots=num_slots,
            copier=self.copier,
            policy=Policy.always(FetchMode.PREFETCH),
            counters=self.counters,
            current_stream=lambda: torch.cuda.current_stream().cuda_stream,
            make_waits=GpuWaits,
        )

    @property
    def page(self):
        return self.driver.granularity

    def tensors(self, views, layer_idx):
        """What a layer's views show, as the tensors that they are."""
        return [
            bytes_of(view)[: 2 * prod(shape)].view(torch.bfloat16).view(shape)
            for view, shape in zip(views[layer_idx], self._shapes.values(), strict=True)
        ]

    def _random(self):
        return {name: (torch.randn(s) / 32).bfloat16() for name, s in self._shapes.items()}

    def _adopt(self, rank, placement):
        shard = LocalShard(self.driver, self.layouts, rank)
        local = placement.local_experts(rank)
        rows = slice(local.start, local.stop)
        zeros = [torch.zeros(len(local), *s[1:]).bfloat16() for s in self._shapes.values()]
        for layer_idx in range(len(self.layouts)):
            tensors = zeros
            if self.weights:
                tensors = [w[rows].contiguous() for w in self.weights[layer_idx].values()]
            shard.adopt_layer([tensor.data_ptr() for tensor in tensors])
        shard.seal()
        return shard
