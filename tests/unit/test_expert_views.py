# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Views of every rank equal the unsharded tensors bit by bit, over real sealed memory files."""

import os

import pytest
import torch

from vllm_dwdp._core import HandleType, HostDriver
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout
from vllm_dwdp.memory.expert_views import ExpertViews
from vllm_dwdp.memory.local_shard import LocalShard
from vllm_dwdp.rank.experts import RankExperts

SHAPES = {"w13_weight": (48, 40), "w2_weight": (40, 24), "w13_bias": (48,), "huge": (1024, 520)}


def make_layers(num_layers, num_experts):
    torch.manual_seed(0)
    return [
        {name: torch.randn(num_experts, *shape).bfloat16() for name, shape in SHAPES.items()}
        for _ in range(num_layers)
    ]


def adopt(driver, layouts, layers, rank):
    shard = LocalShard(driver, RankLayout(layouts, rank))
    for layer_idx, tensors in enumerate(layers):
        local = layouts[layer_idx][0].placement.local_experts(rank)
        rows = [t[local.start : local.stop].clone() for t in tensors.values()]
        shard.adopt_layer([row.data_ptr() for row in rows])
    shard.seal()
    return shard


def layouts_of(layers, placement, granularity):
    return tuple(
        tuple(
            TensorLayout(ExpertTensor(name, t[0].nbytes), placement, granularity)
            for name, t in tensors.items()
        )
        for tensors in layers
    )


@pytest.mark.parametrize("num_experts", [4, 7, 16])
@pytest.mark.parametrize("dwdp_size", [1, 2, 3, 4])
@pytest.mark.parametrize("extra", [0, 1])
def test_views_equal_the_unsharded_tensors(num_experts, dwdp_size, extra):
    size = min(num_experts, -(-num_experts // dwdp_size) + extra) if extra else None
    placement = Placement.make(
        num_experts=num_experts, dwdp_size=dwdp_size, num_experts_per_worker=size
    )
    layers = make_layers(2, num_experts)
    drivers = [HostDriver(name=f"dwdp-rank{rank}") for rank in range(dwdp_size)]
    layouts = layouts_of(layers, placement, drivers[0].granularity)
    shards = [adopt(drivers[rank], layouts, layers, rank) for rank in range(dwdp_size)]
    num_descriptors = len(os.listdir("/proc/self/fd"))

    def take_handles(peer, parcel, expected_sizes):
        blocks = shards[peer].handles(HandleType.FILE_DESCRIPTOR, parcel)
        assert [num_bytes for _, num_bytes in blocks] == list(expected_sizes)
        return [fd for fd, _ in blocks]

    for rank in range(dwdp_size):
        views = ExpertViews(drivers[rank], RankLayout(layouts, rank), shards[rank], take_handles)
        for layer_idx, tensors in enumerate(layers):
            for layout, view in zip(layouts[layer_idx], views.build(layer_idx), strict=True):
                shown = torch.from_dlpack(view.bytes_tensor())[: layout.num_bytes]
                expected = tensors[layout.tensor.name].contiguous().view(torch.uint8).flatten()
                assert torch.equal(shown, expected)
    assert len(os.listdir("/proc/self/fd")) == num_descriptors


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.int8, torch.uint8],
)
def test_tensor_of_any_dtype_outlives_view_and_driver(dtype):
    driver = HostDriver()
    page = driver.granularity
    values = torch.arange(page, dtype=torch.uint8).view(dtype)
    view = driver.reserve_view(page)
    view.map_private(0, page)
    view.fill_private(0, values.data_ptr(), page)
    view.finish()
    address = view.address
    tensor = torch.from_dlpack(view.bytes_tensor()).view(dtype)
    del view, driver
    assert tensor.data_ptr() == address
    assert torch.equal(tensor.view(torch.uint8), values.view(torch.uint8))


def test_finished_view_is_populated_and_kept_out_of_core_dumps():
    driver = HostDriver(name="dwdp-rank7")
    num_bytes = 64 * driver.granularity
    block = driver.create_block(num_bytes)
    source = torch.ones(num_bytes, dtype=torch.uint8)
    block.fill(0, source.data_ptr(), num_bytes)
    block.seal()
    view = driver.reserve_view(num_bytes)
    view.map_block(0, block)
    view.finish()
    with open("/proc/self/smaps") as smaps:
        entry = smaps.read().partition(f"{view.address:x}-")[2].partition("VmFlags:")
    fields = dict(line.split(":", 1) for line in entry[0].splitlines()[1:])
    assert fields["Rss"].split() == fields["Size"].split()
    assert "dd" in entry[2].splitlines()[0].split()


def test_every_expert_of_a_layer_with_more_experts_than_the_first_can_be_chosen():
    driver, numbers = HostDriver(), (8, 16)
    layers = [make_layers(1, number)[0] for number in numbers]
    placements = [Placement.make(num_experts=number, dwdp_size=2) for number in numbers]
    layouts = sum(
        (
            layouts_of([layer], placement, driver.granularity)
            for layer, placement in zip(layers, placements, strict=True)
        ),
        (),
    )
    ranks = [RankExperts(driver, RankLayout(layouts, rank)) for rank in range(2)]
    for rank, experts in enumerate(ranks):
        for layer, placement in zip(layers, placements, strict=True):
            local = placement.local_experts(rank)
            experts.adopt_layer([t[local.start :].data_ptr() for t in layer.values()])
        experts.seal()

    def take_handles(peer, parcel, expected_sizes):
        return [fd for fd, _ in ranks[peer].handles(HandleType.FILE_DESCRIPTOR, parcel)]

    ranks[0].connect(take_handles)
    ranks[0].make_slots(1, slice_bytes=1 << 20)
    for copies, number in zip(ranks[0].copies(lambda experts: experts), numbers, strict=True):
        copied = [sum(num_bytes for *_, num_bytes in expert) for expert in copies.chosen]
        assert len(copied) == number
        assert not any(copied[: number // 2])
        assert all(copied[number // 2 :])
        assert sum(copied) == sum(copies.bytes_by_peer)
