# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How many experts `host_experts=auto` keeps in host memory, and what is refused."""

import json
import re
import socket
from types import SimpleNamespace

import psutil
import pytest

from vllm_dwdp.config import ConfigError, DwdpConfig
from vllm_dwdp.engine.worker import host_share
from vllm_dwdp.engine.worker.host_share import (
    SHARE_KEPT_FOR_VLLM,
    check_host_memory,
    check_told_alike,
    choose_host_experts,
    fewest_host_experts,
    loading_bytes,
    with_host_experts,
)
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout
from vllm_dwdp.memory.estimate import MemoryEstimate
from vllm_dwdp.memory.limits import LimitError

GIB, PAGE = 1 << 30, 2 << 20
NUM_LAYERS, NUM_EXPERTS = 8, 16
PLACEMENT = Placement.make(num_experts=NUM_EXPERTS, dwdp_size=1)
TENSORS = (TensorLayout(ExpertTensor("w13_weight", GIB // 4), PLACEMENT, PAGE),)
LAYOUT = RankLayout((TENSORS,) * NUM_LAYERS, rank=0, num_slots=2)
"""The layout of a rank alone, with 32 GiB of experts."""


def alone(name, payload):
    return [payload]


def choose(config, *, budget, gather=alone):
    layer = SimpleNamespace(placement=PLACEMENT)
    choose_host_experts(
        config, [layer], LAYOUT, other_bytes=GIB, budget_bytes=budget, gather=gather
    )
    return layer.placement.host_experts


def weights(number, num_slots=2):
    """Bytes of GPU memory that a rank uses with so many experts in host memory."""
    placement = with_host_experts(PLACEMENT, number)
    tensors = (TensorLayout(TENSORS[0].tensor, placement, PAGE),)
    layout = RankLayout((tensors,) * NUM_LAYERS, rank=0, num_slots=num_slots)
    estimate = MemoryEstimate.make(layout, other_bytes=GIB)
    return estimate.in_all


def test_auto_keeps_all_in_the_gpu_where_they_fit():
    assert choose(DwdpConfig(host_experts="auto"), budget=80 * GIB) == 0


@pytest.mark.parametrize("room", [15 * GIB, 20 * GIB, 30 * GIB])
def test_auto_takes_the_fewest_that_fit(room):
    number = fewest_host_experts(
        DwdpConfig(host_experts="auto"), LAYOUT, other_bytes=GIB, room=room
    )
    assert weights(number) <= room < weights(number - 1)


def test_layer_with_most_experts_decides_how_many_can_lie_on_the_host():
    few = Placement.make(num_experts=4, dwdp_size=1)
    first = (TensorLayout(TENSORS[0].tensor, few, PAGE),)
    layout = RankLayout((first, *LAYOUT.layouts), rank=0, num_slots=2)
    number = fewest_host_experts(DwdpConfig(host_experts="auto"), layout, other_bytes=0, room=0)
    assert number == NUM_EXPERTS - 1


def test_auto_leaves_each_rank_an_expert_however_little_room_there_is():
    assert choose(DwdpConfig(host_experts="auto"), budget=GIB) == NUM_EXPERTS - 1


def test_direct_needs_no_room_for_slots():
    room = round(20 * GIB * (1 - SHARE_KEPT_FOR_VLLM))
    in_place = choose(DwdpConfig(host_experts="auto", fetch="direct"), budget=20 * GIB)
    assert in_place < choose(DwdpConfig(host_experts="auto"), budget=20 * GIB)
    assert weights(in_place, num_slots=0) <= room


def test_the_rank_with_least_room_decides_for_its_group():
    def gather(name, payload):
        return [payload, b"9"]

    assert choose(DwdpConfig(host_experts="auto"), budget=80 * GIB, gather=gather) == 9


@pytest.mark.parametrize("other", [3, "auto", 0])
def test_ranks_that_were_told_different_numbers_are_refused(other):
    def gather(name, payload):
        return [payload, json.dumps(other).encode()]

    reason = f"same for all ranks of a group, got [2, {other!r}]"
    with pytest.raises(ConfigError, match=re.escape(reason)):
        check_told_alike(DwdpConfig(host_experts=2), gather)


def host_sends(num_bytes):
    """A gathering in which another rank of this host says that it needs `num_bytes`."""
    return lambda name, payload: [
        payload,
        json.dumps([socket.gethostname(), num_bytes, 1 << 50]).encode(),
    ]


def test_ranks_of_a_host_need_its_memory_together():
    """Sizes are shares of this machine's free memory, so that one rank fits and two don't."""
    free = psutil.virtual_memory().available
    layout = RankLayout(((TensorLayout(ExpertTensor("w", free // 32), PLACEMENT, PAGE),),), rank=0)
    config = DwdpConfig(host_experts=8)
    check_host_memory(config, layout, alone)
    with pytest.raises(LimitError, match=r"where 2 rank\(s\) load their experts"):
        check_host_memory(config, layout, host_sends(3 * free // 4))
    check_host_memory(DwdpConfig(), layout, host_sends(free // 4))


def test_limit_of_the_control_group_counts(monkeypatch):
    layout = RankLayout(((TensorLayout(ExpertTensor("w", GIB), PLACEMENT, PAGE),),), rank=0)
    monkeypatch.setattr(host_share, "cgroup_memory_limit", lambda: GIB)
    with pytest.raises(LimitError, match=r"got 1\.00 GiB"):
        check_host_memory(DwdpConfig(host_experts=8), layout, alone)


def test_loading_takes_all_experts_and_blocks_of_a_layer():
    placement = with_host_experts(PLACEMENT, 8)
    layout = RankLayout(((TensorLayout(ExpertTensor("w", GIB), placement, PAGE),),) * 2, rank=0)
    assert loading_bytes(layout) == 2 * NUM_EXPERTS * GIB + 8 * GIB
    odd = RankLayout(((TensorLayout(ExpertTensor("w", GIB + PAGE), placement, PAGE),),), rank=0)
    assert loading_bytes(odd) == 2 * NUM_EXPERTS * GIB + 8 * (GIB + PAGE), "pinned in powers of two"
