# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Where the time of a simulation is known exactly, the simulator gives this time."""

import math

import numpy as np
import pytest
import simpy
from simulated import WHOLE_ROTATED, WHOLE_SAME, costs, run

from vllm_dwdp.simulation.chunk import Request
from vllm_dwdp.simulation.copier import GroupPlace, SliceCopier
from vllm_dwdp.simulation.links import Links
from vllm_dwdp.simulation.pull_order import Order

STEPS, ATTENTION_S, EXPERTS_S = 4, 1.0, 2.0


def test_a_rank_without_peers_takes_the_time_of_its_compute():
    outcome = run(1, costs(num_layers=5, attention_s=ATTENTION_S, experts_s=EXPERTS_S))
    assert outcome.makespan_s == pytest.approx(STEPS * 5 * (ATTENTION_S + EXPERTS_S))
    assert outcome.exposed_share == 0


def test_the_time_outside_of_layers_counts_once_per_step():
    outcome = run(1, costs(num_layers=5, attention_s=1.0, fixed_step_s=0.25))
    assert outcome.makespan_s == pytest.approx(STEPS * (5 + 0.25))


def test_a_compute_bound_rank_waits_for_its_first_layer_only():
    layer = costs(num_layers=6, attention_s=ATTENTION_S, experts_s=EXPERTS_S, peer_bytes=2.5)
    outcome = run(2, layer)
    waited = 2.5 - ATTENTION_S  # the second layer comes after 5 s, and is wanted after 5.5 s
    assert outcome.makespan_s == pytest.approx(STEPS * 6 * (ATTENTION_S + EXPERTS_S) + waited)
    assert [rank.exposed_s for rank in outcome.ranks] == pytest.approx([waited, waited])


def test_a_fetch_bound_rank_takes_the_time_of_its_copies():
    layer = costs(num_layers=6, attention_s=ATTENTION_S, experts_s=EXPERTS_S, peer_bytes=10)
    outcome = run(2, layer)
    assert outcome.makespan_s == pytest.approx(STEPS * 6 * 10 + EXPERTS_S)
    assert outcome.ranks[0].copy_bytes_per_s == pytest.approx(1)


def test_an_odd_number_of_layers_leaves_the_link_idle_once_per_step():
    """The last and the first layer have the same slot: no copy runs beside the last experts."""
    layer = costs(num_layers=3, attention_s=ATTENTION_S, experts_s=EXPERTS_S, peer_bytes=10)
    assert run(2, layer).makespan_s == pytest.approx(STEPS * (3 * 10 + EXPERTS_S))


def test_one_slot_hides_copies_under_attention_only():
    layer = costs(num_layers=4, attention_s=ATTENTION_S, experts_s=EXPERTS_S, peer_bytes=10)
    outcome = run(2, layer, num_slots=1)
    assert outcome.makespan_s == pytest.approx(STEPS * 4 * (10 + EXPERTS_S))


def test_compute_beside_copies_is_slower_by_the_given_factor():
    layer = costs(num_layers=5, attention_s=ATTENTION_S, experts_s=EXPERTS_S, slowdown=1.1)
    assert run(1, layer).makespan_s == pytest.approx(STEPS * 5 * 3.0 * 1.1)


@pytest.mark.parametrize("copies", [WHOLE_SAME, WHOLE_ROTATED])
def test_two_ranks_that_read_each_other_never_contend(copies):
    layer = costs(attention_s=0.3, experts_s=0.4, peer_bytes=1)
    outcome = run(2, layer, copies=copies, start_within_s=7.0)
    assert outcome.rivals == (1.0,)
    assert [rank.copy_bytes_per_s for rank in outcome.ranks] == pytest.approx([1, 1])


def test_a_source_that_all_read_gives_each_an_equal_part():
    env = simpy.Environment()
    links = Links(env, 5, ingress=1.0, egress=1.0)
    pulls = [links.pull(rank, 0, 3.0) for rank in range(1, 5)]
    env.run(env.all_of(pulls))
    assert env.now == pytest.approx(4 * 3.0)
    assert links.rivals.shares() == pytest.approx((0, 0, 0, 1))


def test_a_pull_is_slow_only_while_it_has_a_rival():
    env = simpy.Environment()
    links = Links(env, 3, ingress=1.0, egress=1.0)
    first = links.pull(1, 0, 3.0)
    env.run(1.0)
    second = links.pull(2, 0, 3.0)
    env.run(first)
    assert env.now == pytest.approx(1 + 2 * 2)
    env.run(second)
    assert env.now == pytest.approx(1 + 2 * 2 + 1)
    assert links.rivals.shares() == pytest.approx((2 / 10, 8 / 10))


def test_pulls_of_one_rank_share_its_ingress():
    env = simpy.Environment()
    links = Links(env, 3, ingress=1.0, egress=1.0)
    env.run(env.all_of([links.pull(0, 1, 2.0), links.pull(0, 2, 2.0)]))
    assert env.now == pytest.approx(4.0)


def fetch_in_step(num_ranks: int, order: Order) -> list[float]:
    """When each rank of a group has a layer, if all begin at 0 and a pull alone takes a second."""
    env = simpy.Environment()
    links = Links(env, num_ranks, ingress=1.0, egress=1.0)
    ends: dict[int, float] = {}
    for rank in range(num_ranks):
        copier = SliceCopier(
            env,
            links,
            GroupPlace(rank=rank, first=0, size=num_ranks),
            peer_bytes=1.0,
            slice_bytes=math.inf,
            in_flight=1,
            order=order,
            rng=np.random.default_rng(0),
        )
        fetched = copier.fetch_layer()
        fetched.callbacks.append(lambda _, rank=rank: ends.setdefault(rank, env.now))
    env.run()
    return [ends[rank] for rank in range(num_ranks)]


@pytest.mark.parametrize("num_ranks", [3, 4, 8])
def test_in_step_the_same_order_costs_the_last_rank_half_a_group_times_as_much(num_ranks):
    """All but rank 0 begin at rank 0, where a pull takes n - 1 times as long.

    Then one after another gets ahead. The last rank's pulls take n - 1, n - 2, ..., 1 seconds.
    """
    assert fetch_in_step(num_ranks, Order.SAME)[-1] == pytest.approx(
        num_ranks * (num_ranks - 1) / 2
    )


@pytest.mark.parametrize("num_ranks", [3, 4, 8])
def test_in_step_the_rotated_order_takes_the_time_of_the_bytes(num_ranks):
    found = fetch_in_step(num_ranks, Order.ROTATED)
    assert found == pytest.approx([num_ranks - 1] * num_ranks)


@pytest.mark.parametrize("num_ranks", [3, 4, 8])
def test_in_step_a_rotated_order_costs_nothing(num_ranks):
    outcome = run(num_ranks, costs(peer_bytes=1), copies=WHOLE_ROTATED)
    assert outcome.rivals == (1.0,)
    assert outcome.makespan_s == pytest.approx(STEPS * 4 * (num_ranks - 1))


def test_a_prompt_that_arrives_late_is_served_after_its_arrival():
    requests = [Request(0, 5.0, 500)]
    outcome = run(1, costs(num_layers=2, attention_s=1.0), requests)
    assert outcome.makespan_s == pytest.approx(5.0 + 2 * 0.5)
    assert outcome.ttft_s.p50 == pytest.approx(2 * 0.5)


def test_a_long_prompt_attends_to_all_that_came_before():
    """3 tokens in chunks of 2 and 1 have 1 + 2 + 3 pairs, as many as in one chunk."""
    layer = costs(num_layers=1, attention_s_per_pair=1.0)
    outcome = run(1, layer, [Request(0, 0.0, 3)], max_num_batched_tokens=2)
    assert outcome.ranks[0].steps == 2
    assert outcome.makespan_s == pytest.approx(6.0)
