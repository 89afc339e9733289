# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Layers that wait for copies of different lengths.

Each layer computes for 3 seconds before its experts, and for 1 second with them.
"""

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st
from planning.cases import R1, R1_RATES, R1_SPREAD

from vllm_dwdp.planning import constants, implementation
from vllm_dwdp.planning.contention import draw_copies, mean_rivals
from vllm_dwdp.planning.dwdp_step import dwdp_layer
from vllm_dwdp.planning.late_copies import mean_layer_seconds
from vllm_dwdp.planning.workload import Workload
from vllm_dwdp.simulation.slots import Slots


@pytest.mark.parametrize(
    ("copies", "seconds"),
    [
        ([2.0], 4),
        ([4.0], 4),
        ([5.0], 5),
        ([6.0, 1.0], 4),  # the long copy begins 7 s before its experts are due: not late
        ([8.0, 0.0], 4.5),  # 1 s late, in every second layer
        ([10.0, 0.0], 5.5),
    ],
)
def test_long_copies_cost_what_short_ones_do_not_make_up_for(copies, seconds):
    assert mean_layer_seconds(3, 1, copies * 500) == pytest.approx(seconds, abs=0.02)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=30))
def test_layers_take_as_long_as_in_the_simulator(copies):
    env = simpy.Environment()
    slots = Slots(
        env, GivenCopies(env, copies), num_layers=len(copies) + 2, num_slots=constants.NUM_SLOTS
    )
    end = env.run(env.process(compute(env, slots, len(copies))))
    assert mean_layer_seconds(3, 1, copies) * len(copies) == pytest.approx(end)


class GivenCopies:
    """The simulator's copies of a rank: none for the first layer, then of `seconds` in turn."""

    layer_bytes = 0.0

    def __init__(self, env, seconds):
        self._env = env
        self._left = iter([0.0, *seconds])

    def fetch_layer(self):
        return self._env.timeout(next(self._left, 0.0))


def compute(env, slots, num_layers):
    """The process of a rank. Returns when its last layer ended."""
    slots.start()
    for layer_idx in range(num_layers):
        yield env.timeout(3)
        yield slots.experts_of(layer_idx)
        yield env.timeout(1)
        slots.release(layer_idx)
    return env.now


@pytest.mark.parametrize("ranks", [3, 4, 72])
@pytest.mark.parametrize("busy_share", [0.0, 0.3, 1.0])
def test_copies_are_longer_by_the_mean_of_their_rivals(ranks, busy_share):
    copies = draw_copies(2.0, ranks, busy_share)
    expected = 2 * (1 + busy_share * mean_rivals(ranks))
    assert min(copies) >= 2.0
    assert sum(copies) / len(copies) == pytest.approx(expected, rel=0.01)
    assert (len(set(copies)) > 1) is (busy_share > 0)


def test_enough_copies_are_drawn_for_chance_not_to_matter():
    copies = draw_copies(2.0, 4, 1.0)
    half = len(copies) // 2
    first, second = (mean_layer_seconds(2, 1, part) for part in (copies[:half], copies[half:]))
    assert first == pytest.approx(second, rel=0.01)


@pytest.mark.parametrize(("tokens", "is_late"), [(32768, False), (15000, True)])
def test_layers_wait_where_computation_is_hardly_longer_than_copies(tokens, is_late):
    work = Workload(tokens, 8192, 0.8)
    found = dwdp_layer(R1, R1_RATES, work, R1_SPREAD, implementation.VLLM_DWDP)
    assert found.copy < found.compute
    assert (found.exposed > 0.005 * found.compute) is is_late
