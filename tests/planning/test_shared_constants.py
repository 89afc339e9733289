# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Figures that the planner has a copy of, so that it needn't import PyTorch, are those of ranks."""

from vllm_dwdp import config
from vllm_dwdp.device import bandwidth
from vllm_dwdp.engine.admission import gate
from vllm_dwdp.planning import constants


def test_the_planner_decides_like_a_rank():
    assert constants.FAST_LINK == bandwidth.FAST_LINK
    assert constants.NUM_SLOTS == config.DEFAULT_NUM_SLOTS
    assert constants.HIDE_FACTOR == gate.BREAK_EVEN_FACTOR
