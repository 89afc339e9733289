# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Figures that the planner has a copy of, so that it needn't import PyTorch, are those of ranks."""

from vllm_dwdp import config
from vllm_dwdp.device import bandwidth
from vllm_dwdp.engine.admission import gate
from vllm_dwdp.offline import llm
from vllm_dwdp.planning import constants
from vllm_dwdp.planning.job import ENDLESS


def test_the_planner_decides_like_a_rank():
    assert constants.FAST_LINK == bandwidth.FAST_LINK
    assert constants.NUM_SLOTS == config.DEFAULT_NUM_SLOTS
    assert constants.HIDE_FACTOR == gate.BREAK_EVEN_FACTOR
    assert ENDLESS.max_in_flight == llm.DEFAULT_MAX_IN_FLIGHT
