# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_dwdp.layout.placement import Placement, PlacementError


@given(st.integers(1, 300), st.integers(1, 64))
def test_even_placement_owns_every_expert_once(num_experts, dwdp_size):
    if dwdp_size > num_experts:
        with pytest.raises(PlacementError, match="dwdp_size"):
            Placement.make(num_experts=num_experts, dwdp_size=dwdp_size)
        return
    placement = Placement.make(num_experts=num_experts, dwdp_size=dwdp_size)
    owned = [e for rank in range(dwdp_size) for e in placement.local_experts(rank)]
    sizes = {len(placement.local_experts(rank)) for rank in range(dwdp_size)}
    assert owned == list(range(num_experts))
    assert max(sizes) - min(sizes) <= 1


@given(st.data())
def test_redundant_placement_covers_all_and_reads_only_from_owners(data):
    num_experts = data.draw(st.integers(1, 100))
    dwdp_size = data.draw(st.integers(1, min(16, num_experts)))
    size = data.draw(st.integers(-(-num_experts // dwdp_size), num_experts))
    placement = Placement.make(
        num_experts=num_experts, dwdp_size=dwdp_size, num_experts_per_worker=size
    )
    segments = placement.segments()
    assert [s.start for s in segments] == [0, *(s.end for s in segments[:-1])]
    assert segments[-1].end == num_experts
    for segment in segments:
        assert segment.owners
        for rank, turn in itertools.product(range(dwdp_size), range(3)):
            source = placement.source(segment, rank, turn)
            assert segment.start in placement.local_experts(source)
            assert source == rank or rank not in segment.owners


@pytest.mark.parametrize(
    ("num_experts", "dwdp_size", "size"), [(16, 4, 8), (16, 3, 12), (64, 8, 16), (256, 4, 128)]
)
def test_reads_of_redundant_experts_are_balanced_over_their_owners(num_experts, dwdp_size, size):
    placement = Placement.make(
        num_experts=num_experts, dwdp_size=dwdp_size, num_experts_per_worker=size
    )
    given = [0] * dwdp_size
    for rank, turn in itertools.product(range(dwdp_size), range(4 * dwdp_size)):
        for segment in placement.segments():
            source = placement.source(segment, rank, turn)
            given[source] += (segment.end - segment.start) * (source != rank)
    assert max(given) <= 1.35 * sum(given) / dwdp_size


@pytest.mark.parametrize("size", [3, 17])
def test_size_that_cannot_cover_or_exceeds_the_experts_is_refused(size):
    with pytest.raises(PlacementError, match="num_experts_per_worker"):
        Placement.make(num_experts=16, dwdp_size=4, num_experts_per_worker=size)
