# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Experts in host memory in placements, layouts, copy plans and memory estimates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_dwdp.config import ConfigError, DwdpConfig
from vllm_dwdp.layout.copies import CopyPlan
from vllm_dwdp.layout.placement import Placement, PlacementError
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout
from vllm_dwdp.memory.estimate import MemoryEstimate, host_bytes

PAGE = 4096


@st.composite
def placements(draw):
    """Placements with experts in host memory."""
    dwdp_size = draw(st.integers(1, 6))
    num_experts = draw(st.integers(2 * dwdp_size, 60))
    host_experts = draw(st.integers(1, num_experts // dwdp_size - 1))
    return Placement.make(num_experts=num_experts, dwdp_size=dwdp_size, host_experts=host_experts)


@given(placements())
def test_the_last_experts_of_every_range_are_on_the_host(placement):
    on_host = {e for s in placement.segments() for e in range(s.start, s.end) if s.on_host}
    expected = {e for _, end in placement.ranges for e in range(end - placement.host_experts, end)}
    assert on_host == expected
    assert all(len(s.owners) == 1 for s in placement.segments())


@given(placements(), st.integers(PAGE, 5 * PAGE))
def test_a_rank_copies_what_others_have_and_its_own_of_the_host(placement, row_bytes):
    layer = (TensorLayout(ExpertTensor("w", row_bytes), placement, PAGE),)
    for rank in range(placement.dwdp_size):
        of_rank = RankLayout((layer,), rank, num_slots=1)
        slot = of_rank.slot_layout(0)
        plan = CopyPlan.make(
            slot.pieces[0], rank=rank, num_ranks=placement.dwdp_size, slice_bytes=2 * PAGE
        )
        by_peer = plan.bytes_by_peer(placement.dwdp_size)
        assert sum(by_peer) == of_rank.missing_bytes(0)
        assert by_peer[rank] == host_bytes([layer], rank)
        resident = sum(block.extent.num_bytes for block in of_rank.resident_blocks(0))
        assert resident + sum(by_peer) == sum(extent.num_bytes for extent in layer[0].blocks)


@given(placements(), st.integers(PAGE, 5 * PAGE))
def test_the_estimate_leaves_out_what_lies_on_the_host(placement, row_bytes):
    layers = ((TensorLayout(ExpertTensor("w", row_bytes), placement, PAGE),),) * 2
    for rank in range(placement.dwdp_size):
        of_rank = RankLayout(layers, rank)
        estimate = MemoryEstimate.make(of_rank, other_bytes=0)
        resident = sum(block.extent.num_bytes for block in of_rank.resident_blocks(0))
        fringe = estimate.own - 2 * resident
        assert 0 <= fringe < len(layers) * 5 * PAGE + PAGE or not layers[0][0].blocks


@pytest.mark.parametrize("number", [4, 5])
def test_a_rank_keeps_one_expert_at_least(number):
    with pytest.raises(PlacementError, match="less than the 4 experts of a rank"):
        Placement.make(num_experts=8, dwdp_size=2, host_experts=number)


@pytest.mark.parametrize("number", [1, "auto"])
def test_redundant_experts_are_not_for_the_host(number):
    with pytest.raises(ConfigError, match="can't go together"):
        DwdpConfig(num_experts_per_worker=5, host_experts=number)


@pytest.mark.parametrize("value", [-1, 1.5, True, "all", None])
def test_a_number_or_auto_is_expected(value):
    with pytest.raises(ConfigError, match=r"host_experts must be a whole number"):
        DwdpConfig(host_experts=value)


@pytest.mark.parametrize(("value", "given_number"), [(0, 0), (3, 3), ("auto", 0)])
def test_what_is_known_before_the_model_is(value, given_number):
    assert DwdpConfig(host_experts=value).given_host_experts == given_number
