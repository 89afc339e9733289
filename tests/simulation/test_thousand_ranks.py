# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A thousand ranks of a model with 58 MoE layers, in the time that docs/simulation.md states."""

import time

import pytest
from simulated import DEP, WHOLE_ROTATED, costs, full_steps, run

from vllm_dwdp.simulation.speeds import Speeds

STEPS = 1
LAYER = costs(
    num_layers=58,
    attention_s=6.0,
    experts_s=4.0,
    peer_bytes=1.0,
)


def timed(**options) -> float:
    """CPU seconds of this process for a step of a thousand ranks."""
    began = time.process_time()
    outcome = run(
        1000,
        LAYER,
        full_steps(STEPS * 1000),
        dwdp_size=8,
        start_within_s=500.0,
        speeds=Speeds(drift=0.03, jitter=0.02),
        **options,
    )
    assert [rank.steps for rank in outcome.ranks] == [STEPS] * 1000
    return time.process_time() - began


def test_a_step_of_a_thousand_ranks_takes_seconds():
    assert timed() < 15
    assert timed(strategy=DEP) < 5


@pytest.mark.slow
def test_a_step_of_a_thousand_ranks_with_every_pull_takes_a_minute_at_most():
    assert timed(copies=WHOLE_ROTATED) < 120
