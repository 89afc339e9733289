# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Speeds and routing vary around a mean of 1, so that a variation doesn't speed up or slow down."""

import numpy as np
import pytest

from vllm_dwdp.simulation.skew import RoutingSkew
from vllm_dwdp.simulation.speeds import Pace, Speeds


def pace(seed: int = 0, rank: int = 0, num_layers: int = 50, **speeds: object) -> Pace:
    rng = np.random.default_rng(seed)
    return Pace(Speeds(**speeds), rank=rank, num_layers=num_layers, rng=rng)


def test_without_variations_every_layer_takes_the_normal_time():
    assert pace().next_step() == pytest.approx(np.ones(50))


def test_jitter_is_around_the_normal_time_and_differs_by_layer():
    one = pace(jitter=0.3)
    factors = np.concatenate([one.next_step() for _ in range(400)])
    assert factors.mean() == pytest.approx(1, abs=0.01)
    assert factors.std() == pytest.approx(0.3, abs=0.01)


def test_drift_is_around_the_normal_time_and_lasts_for_steps():
    one = pace(drift=0.3, drift_steps=5.0)
    steps = np.array([one.next_step()[0] for _ in range(40_000)])
    assert steps.mean() == pytest.approx(1, abs=0.03)
    assert steps.std() == pytest.approx(0.3, abs=0.03)
    memory = np.corrcoef(steps[:-5], steps[5:])[0, 1]
    assert memory == pytest.approx(np.exp(-1), abs=0.06)


def test_spread_stays_for_the_whole_run():
    ranks = [pace(seed=seed, spread=0.2) for seed in range(2000)]
    first, second = (np.array([one.next_step()[0] for one in ranks]) for _ in range(2))
    assert first.tolist() == second.tolist()
    assert first.mean() == pytest.approx(1, abs=0.02)
    assert first.std() == pytest.approx(0.2, abs=0.02)


def test_a_rank_of_half_the_speed_takes_twice_as_long():
    assert pace(rank=3, slow={3: 0.5}).next_step() == pytest.approx(2 * np.ones(50))


def test_skewed_loads_add_up_to_all_tokens_in_each_layer():
    rng = np.random.default_rng(0)
    loads = RoutingSkew(0.3, num_ranks=8, num_layers=1000, rng=rng).next_step()
    assert loads.mean(axis=0) == pytest.approx(np.ones(1000))
    assert loads.std() == pytest.approx(0.3, abs=0.03)
