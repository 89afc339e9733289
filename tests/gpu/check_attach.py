# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Attaching a model shaped as DeepSeek-R1 (58 layers, 256 experts), its rows scaled to fit."""

from figures import say
from gpu import Gpu
from rank_pair import RankPair

NUM_LAYERS, NUM_EXPERTS = 58, 256
SHAPES = {"w13_weight": (NUM_EXPERTS, 1024, 896), "w2_weight": (NUM_EXPERTS, 896, 512)}

pair = RankPair(Gpu(), SHAPES, num_layers=NUM_LAYERS, is_empty=True)
say(
    f"attach {NUM_LAYERS} layers x {NUM_EXPERTS} experts",
    seconds=round(pair.seconds_to_attach, 2),
    seconds_with_slots=round(pair.seconds_to_bind, 2),
    maps=pair.num_maps,
    private_mib=pair.num_private_bytes >> 20,
    slot_mib=pair.slots.num_bytes >> 20,
    at_most={"seconds": 10, "seconds_with_slots": 10},
)
