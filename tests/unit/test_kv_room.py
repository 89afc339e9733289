# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How many tokens of KV cache other ways to hold experts would leave."""

from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import ExpertTensor, TensorLayout
from vllm_dwdp.memory.kv_room import KvRoom

PAGE = 4096


def layout(num_experts=8, dwdp_size=4, num_layers=2):
    placement = Placement.make(num_experts=num_experts, dwdp_size=dwdp_size)
    layer = (TensorLayout(ExpertTensor("w", 2 * PAGE), placement, PAGE),)
    return RankLayout((layer,) * num_layers, 0)


def test_room_of_a_rank_with_a_slot():
    all_bytes = 2 * 8 * 2 * PAGE
    own, slot = all_bytes // 4, all_bytes // 4
    kv_bytes = 64 * PAGE
    room = KvRoom.make(layout(), num_tokens=640, kv_bytes=kv_bytes, held_bytes=own + slot)
    assert room == (640, 640 - 10 * 16, 640 + 10 * 8)


def test_no_room_is_none():
    room = KvRoom.make(layout(), num_tokens=10, kv_bytes=PAGE, held_bytes=8 * PAGE)
    assert room.with_all_experts == 0
    assert room.with_expert_parallelism == 10
