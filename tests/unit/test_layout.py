# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Every byte of every view comes from exactly one place, whatever the sizes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout

layouts = st.builds(
    lambda experts, ranks, row, page, extra: TensorLayout(
        ExpertTensor("w13_weight", row),
        Placement.make(
            num_experts=experts,
            dwdp_size=min(ranks, experts),
            num_experts_per_worker=min(experts, -(-experts // min(ranks, experts)) + extra),
        ),
        page,
    ),
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(1, 500),
    st.sampled_from([16, 64, 256]),
    st.integers(0, 5),
)


@settings(max_examples=300)
@given(layouts)
def test_blocks_and_private_spans_tile_the_view(layout):
    pieces = [(b.start, b.num_bytes) for b in layout.blocks]
    pieces += [(s.start, s.num_bytes) for s in layout.private_spans]
    at = 0
    for start, num_bytes in sorted(pieces):
        assert start == at and num_bytes % layout.granularity == 0 == start % layout.granularity
        at += num_bytes
    assert at == layout.view_bytes


@settings(max_examples=300)
@given(layouts)
def test_blocks_and_fragments_tile_the_tensor(layout):
    extents = sorted((e.start, e.num_bytes) for e in (*layout.blocks, *layout.fragments))
    at = 0
    for start, num_bytes in extents:
        assert start == at and num_bytes > 0
        at += num_bytes
    assert at == layout.num_bytes


@settings(max_examples=300)
@given(layouts)
def test_fringe_packs_each_fragment_of_its_rank_once(layout):
    layers = ((layout, layout), (layout,))
    for rank in range(layout.placement.dwdp_size):
        of_rank = RankLayout(layers, rank)
        fringe = of_rank.fringe(rank)
        owned = [e for e in layout.fragments if rank in e.segment.owners]
        assert [p.extent for p in fringe.pieces] == owned * 3
        assert all(
            b.offset == a.offset + a.extent.num_bytes
            for a, b in zip(fringe.pieces, fringe.pieces[1:], strict=False)
        )
        assert sum(of_rank.block_sizes(rank, of_rank.fringe_parcel)) == fringe.num_bytes
