# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The estimate made from layouts before loading equals the memory that a rank then uses."""

import pytest
from support.gpu_ranks import adopt, layouts_of, make_layers

from vllm_dwdp._core import HandleType
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.memory.estimate import MemoryEstimate, gib

NUM_LAYERS, NUM_EXPERTS, OTHER_BYTES = 3, 7, 12345


@pytest.mark.parametrize("num_slots", [0, 1, 2])
@pytest.mark.parametrize(
    ("dwdp_size", "num_experts_per_worker"), [(1, None), (2, None), (2, 5), (3, None)]
)
def test_estimate_is_what_a_rank_takes(fake, dwdp_size, num_experts_per_worker, num_slots):
    placement = Placement.make(
        num_experts=NUM_EXPERTS,
        dwdp_size=dwdp_size,
        num_experts_per_worker=num_experts_per_worker,
    )
    drivers = [fake.driver(rank) for rank in range(dwdp_size)]
    page = drivers[0].granularity
    layers = make_layers(NUM_LAYERS, NUM_EXPERTS, page)
    layouts = layouts_of(layers, placement, page)
    of_ranks = [RankLayout(layouts, rank, num_slots) for rank in range(dwdp_size)]
    ranks = [adopt(drivers[rank], of_ranks[rank], layers) for rank in range(dwdp_size)]

    def take_handles(peer, parcel, expected_sizes):
        handles = ranks[peer].handles(HandleType.FILE_DESCRIPTOR, parcel)
        return [handle for handle, _ in handles]

    estimate = MemoryEstimate.make(of_ranks[0], other_bytes=OTHER_BYTES)
    experts = ranks[0]
    assert estimate.own == experts.shard.num_block_bytes
    experts.connect(take_handles)
    views = experts.views
    assert estimate.private == views.num_private_bytes
    taken = experts.shard.num_block_bytes + views.num_private_bytes + OTHER_BYTES
    assert estimate.without_slots == taken
    if num_slots and dwdp_size > 1:
        slots = experts.make_slots(num_slots, slice_bytes=page)
        on_slot = [experts.build_on_slot(i) for i in range(NUM_LAYERS)]
        assert len(on_slot) == len(experts.direct)
        taken += slots.num_bytes + views.num_private_bytes - estimate.private
    assert estimate.in_all == taken


def test_layer_that_is_twice_in_memory_counts_where_it_is_more_than_what_stays():
    parts = {"own": 100, "private": 1, "other": 10}
    assert MemoryEstimate(slots=0, layer=30, **parts).most == 140
    assert MemoryEstimate(slots=60, layer=30, **parts).most == 171
    on_host = {"own": 10, "private": 1, "other": 10, "loads_on_host": True}
    assert MemoryEstimate(slots=0, layer=30, **on_host).most == 40, "before any block is on the GPU"


def test_estimate_is_described_for_people():
    estimate = MemoryEstimate(own=3 << 30, private=0, slots=1 << 29, layer=0, other=1 << 30)
    assert estimate.describe() == (
        "3.00 GiB of own experts, 0.00 GiB of private pages, 0.50 GiB of slots, "
        "1.00 GiB of other weights"
    )
    assert gib(1 << 30) == "1.00 GiB"
