# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A copy plan copies each missing byte once, from an owner, into the slot, whatever the sizes."""

import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dwdp.layout.copies import (
    MAX_GPU_SLICE_BYTES,
    MIN_GPU_SLICE_BYTES,
    MIN_TURNS,
    CopyPlan,
    expert_slices,
    gpu_slice_bytes,
)
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.slots import SlotLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout

GRANULARITY = 16


@st.composite
def models(draw):
    """(layers, rank, dwdp_size), with layers of random shapes."""
    dwdp_size = draw(st.integers(1, 5))
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        num_experts = draw(st.integers(dwdp_size, 24))
        least = -(-num_experts // dwdp_size)
        placement = Placement.make(
            num_experts=num_experts,
            dwdp_size=dwdp_size,
            num_experts_per_worker=draw(st.integers(least, num_experts)),
        )
        rows = draw(st.lists(st.integers(1, 200), min_size=1, max_size=3))
        layers.append(
            tuple(TensorLayout(ExpertTensor(f"t{r}", r), placement, GRANULARITY) for r in rows)
        )
    return layers, draw(st.integers(0, dwdp_size - 1)), dwdp_size


def one_slot(layers, rank):
    """The layout of a slot that serves all layers."""
    return RankLayout(tuple(layers), rank, num_slots=1).slot_layout(0)


def missing_bytes(layer, layer_idx, rank):
    """By (tensor, byte of the view), the peer to read from, for all blocks that the rank lacks."""
    found = {}
    for tensor_idx, layout in enumerate(layer):
        for extent in layout.blocks:
            source = layout.source(extent.segment, rank, layer_idx, tensor_idx)
            if source != rank:
                assert source in extent.segment.owners
                for at in range(extent.start, extent.start + extent.num_bytes):
                    found[tensor_idx, at] = source
    return found


def bytes_of(slices):
    return Counter((s.tensor_idx, at) for s in slices for at in view_bytes(s))


def view_bytes(piece):
    return range(piece.view_offset, piece.view_offset + piece.num_bytes)


@settings(max_examples=200, deadline=None)
@given(models(), st.integers(1, 300))
def test_plan_covers_all_missing_bytes_once_and_reads_owners(model, slice_bytes):
    layers, rank, dwdp_size = model
    slot = one_slot(layers, rank)
    for layer_idx, layer in enumerate(layers):
        plan = CopyPlan.make(
            slot.pieces[layer_idx], rank=rank, num_ranks=dwdp_size, slice_bytes=slice_bytes
        )
        missing = missing_bytes(layer, layer_idx, rank)
        assert bytes_of(plan.slices) == Counter(missing.keys())
        assert plan.num_bytes == len(missing) == sum(plan.bytes_by_peer(dwdp_size))
        for s in plan.slices:
            assert s.num_bytes <= slice_bytes
            assert all(missing[s.tensor_idx, at] == s.peer for at in view_bytes(s))
            assert 0 <= s.page_offset <= slot.pages[s.page_idx].num_bytes - s.num_bytes


@settings(max_examples=200, deadline=None)
@given(models())
def test_pages_are_mapped_whole_and_once_in_a_layer(model):
    layers, rank, _ = model
    slot = one_slot(layers, rank)
    for layer_idx in range(len(layers)):
        pieces = slot.pieces[layer_idx]
        assert len({p.page_idx for p in pieces}) == len(pieces)
        for piece in pieces:
            assert piece.num_bytes == slot.pages[piece.page_idx].num_bytes
            assert piece.view_offset % GRANULARITY == 0 == piece.num_bytes % GRANULARITY


@settings(max_examples=100, deadline=None)
@given(models())
def test_slot_of_equal_layers_is_as_large_as_one_of_them_needs(model):
    (layer, *_), rank, _ = model
    missing = list(RankLayout((layer,), rank).missing_blocks(0))
    slot = SlotLayout.make({0: missing}, granularity=GRANULARITY)
    again = SlotLayout.make({0: missing, 1: missing}, granularity=GRANULARITY)
    needed = sum(piece.num_bytes for piece in slot.pieces[0])
    assert slot.num_bytes == needed == again.num_bytes


@settings(max_examples=200, deadline=None)
@given(models(), st.integers(1, 300))
def test_rounds_are_even_between_peers_and_start_at_the_right_neighbour(model, slice_bytes):
    layers, rank, dwdp_size = model
    slot = one_slot(layers, rank)
    for layer_idx in range(len(layers)):
        plan = CopyPlan.make(
            slot.pieces[layer_idx], rank=rank, num_ranks=dwdp_size, slice_bytes=slice_bytes
        )
        for one in plan.rounds:
            distances = [(s.peer - rank) % dwdp_size for s in one]
            assert distances == sorted(distances) and 0 not in distances
            by_peer = CopyPlan((one,)).bytes_by_peer(dwdp_size)
            assert all(num_bytes <= slice_bytes for num_bytes in by_peer)
        for one, after in itertools.pairwise(plan.rounds):
            for peer in {s.peer for s in after}:
                together = [s.num_bytes for s in (*one, *after) if s.peer == peer]
                assert sum(together) > slice_bytes, "a round is as full as it can be"


@given(st.integers(1, 10**11))
def test_slices_of_a_gpu_leave_every_peer_several_turns(peer_bytes):
    found = gpu_slice_bytes(peer_bytes)
    assert MIN_GPU_SLICE_BYTES <= found <= MAX_GPU_SLICE_BYTES
    assert found & (found - 1) == 0, "pages of slots are powers of two, which it should divide"
    if peer_bytes >= MIN_TURNS * MIN_GPU_SLICE_BYTES:
        assert found * MIN_TURNS <= peer_bytes


def test_copies_of_a_gpu_alternate_between_peers():
    """DeepSeek-R1 on 8 GPUs: a layer has 147 copies, and successive ones read different peers."""
    mib = 1 << 20
    placement = Placement.make(num_experts=256, dwdp_size=8)
    layer = tuple(
        TensorLayout(ExpertTensor(name, num_bytes), placement, 2 * mib)
        for name, num_bytes in (("w13_weight", 28 * mib), ("w2_weight", 14 * mib))
    )
    slot = one_slot([layer], rank=3)
    plan = CopyPlan.make(
        slot.pieces[0], rank=3, num_ranks=8, slice_bytes=gpu_slice_bytes(32 * 42 * mib)
    )
    peers = [s.peer for s in plan.slices]
    assert peers[:8] == [4, 5, 6, 7, 0, 1, 2, 4]
    assert plan.num_slices == 147
    assert sum(one == after for one, after in itertools.pairwise(peers)) < 0.1 * len(peers)


@settings(max_examples=200, deadline=None)
@given(models())
def test_experts_together_are_all_that_is_missing(model):
    layers, rank, _ = model
    slot = one_slot(layers, rank)
    for layer_idx, layer in enumerate(layers):
        pieces = slot.pieces[layer_idx]
        of_experts = [
            expert_slices(layer, pieces, expert) for expert in range(layer[0].placement.num_experts)
        ]
        missing = missing_bytes(layer, layer_idx, rank)
        assert sum((bytes_of(s) for s in of_experts), Counter()) == Counter(missing.keys())
        for expert, slices in enumerate(of_experts):
            for s in slices:
                row = layer[s.tensor_idx].tensor.expert_bytes
                assert expert * row <= s.view_offset
                assert s.view_offset + s.num_bytes <= (expert + 1) * row
                assert missing[s.tensor_idx, s.view_offset] == s.peer
                assert s.page_offset + s.num_bytes <= slot.pages[s.page_idx].num_bytes
