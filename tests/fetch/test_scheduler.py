# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The scheduler over simulated copies: kernels read what they need, and nothing hangs."""

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import NUM_PARTS, CopyFailed, KernelFailed, Simulation

from vllm_dwdp.config import FetchMode

PREFETCH, SELECTIVE, DIRECT = FetchMode.PREFETCH, FetchMode.SELECTIVE, FetchMode.DIRECT


def simulation(num_layers, num_slots, seed=0, **options):
    return Simulation(num_layers, num_slots, random.Random(seed), **options)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_runs_reads_what_it_needs(data):
    num_layers = data.draw(st.integers(1, 7))
    simulated = simulation(
        num_layers,
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(0, 10_000)),
        without=data.draw(st.sets(st.integers(0, num_layers - 1), max_size=2)),
    )
    if data.draw(st.booleans()):
        simulated.scheduler.start()
    whole_step = st.just(list(range(num_layers)))
    any_layers = st.lists(st.integers(0, num_layers - 1), max_size=2 * num_layers)
    for _ in range(data.draw(st.integers(1, 8))):
        mode = data.draw(st.sampled_from(FetchMode))
        for layer in data.draw(st.one_of(whole_step, any_layers)):
            fails = data.draw(st.integers(0, 9)) == 0
            num_chosen = data.draw(st.integers(0, NUM_PARTS))
            try:
                simulated.run(layer, mode, num_chosen=num_chosen, fails=fails)
            except KernelFailed:
                break
        if data.draw(st.integers(0, 3)) == 0:
            simulated.replay_graph(data.draw(st.sampled_from(FetchMode)))


@pytest.mark.parametrize("num_slots", [1, 2, 3, 4])
@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 5, 8])
def test_every_layer_is_prefetched_over_the_end_of_the_step(num_layers, num_slots):
    simulated = simulation(num_layers, num_slots)
    simulated.scheduler.start()
    for _ in range(4):
        simulated.step(PREFETCH)
    counters = simulated.counters
    assert counters.misses == 0
    assert counters.hits == 4 * num_layers
    assert counters.step_hits >= 4 * min(num_slots, num_layers)
    assert counters.steps == {"direct": 0, "prefetch": 4, "selective": 0}


def test_stream_is_asked_for_once_a_step_and_orders_all_its_copies():
    streams = iter(range(1000))
    simulated = simulation(7, 2, current_stream=lambda: next(streams))
    simulated.scheduler.start()
    for _ in range(3):
        simulated.copier.streams.clear()
        before = next(streams)
        simulated.step(PREFETCH)
        assert set(simulated.copier.streams) == {before + 1}
        assert next(streams) == before + 2


def test_layers_that_keep_their_slot_are_copied_once():
    simulated = simulation(3, 3)
    for _ in range(5):
        simulated.step(PREFETCH)
    assert simulated.counters.copies == 3
    assert simulated.counters.hits == 4 * 3


def test_first_step_without_a_start_misses_only_the_first_layer_of_each_slot():
    simulated = simulation(6, 2)
    for _ in range(3):
        simulated.step(PREFETCH)
    assert simulated.counters.misses == 2


def test_step_in_direct_mode_leaves_slots_warm():
    simulated = simulation(5, 2)
    simulated.scheduler.start()
    for mode in (PREFETCH, DIRECT, DIRECT, PREFETCH):
        simulated.step(mode)
    assert simulated.counters.misses == 0


def test_layers_that_miss_nothing_do_not_break_the_chain():
    simulated = simulation(8, 2, without=[2, 3, 6])
    simulated.scheduler.start()
    for _ in range(3):
        simulated.step(PREFETCH)
    assert simulated.counters.misses == 0


@pytest.mark.parametrize("num_layers", [4, 5])
def test_layer_that_runs_twice_in_a_step_keeps_its_slot_until_its_last_use(num_layers):
    simulated = simulation(num_layers, 2)
    for _ in range(6):
        before = simulated.counters.misses
        for layer in range(num_layers):
            for _ in range(2 if layer == 3 else 1):
                simulated.run(layer, PREFETCH)
    assert simulated.counters.misses == before
    for _ in range(4):
        before = simulated.counters.misses
        simulated.step(PREFETCH)
    assert simulated.counters.misses == before


def test_step_cut_short_costs_misses_in_the_next_and_none_later():
    simulated = simulation(6, 2)
    simulated.scheduler.start()
    simulated.step(PREFETCH)
    for layer in range(3):
        simulated.run(layer, PREFETCH)
    with pytest.raises(KernelFailed):
        simulated.run(3, PREFETCH, fails=True)
    for _ in range(3):
        simulated.step(PREFETCH)
    before = simulated.counters.misses
    simulated.step(PREFETCH)
    assert simulated.counters.misses == before


def test_selective_brings_what_was_chosen_and_not_held():
    simulated = simulation(2, 2)
    simulated.step(SELECTIVE, num_chosen=1)
    assert simulated.counters.bytes_fetched["selective"] == [2]
    simulated.step(SELECTIVE, num_chosen=3)
    assert simulated.counters.bytes_fetched["selective"] == [2 + 4]
    assert simulated.counters.selective_hits == 2
    simulated.step(PREFETCH)
    simulated.step(SELECTIVE)
    assert simulated.counters.bytes_fetched["selective"] == [6]


@pytest.mark.parametrize("seed", range(20))
def test_cancelled_copy_has_ended_when_others_write_its_slot(seed):
    """Copies of chosen experts may not queue behind the copier's; on host memory they do."""
    simulated = simulation(4, 2, seed)
    simulated.scheduler.start()
    for _ in range(5):
        simulated.run(2, SELECTIVE)
        simulated.run(0, PREFETCH)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("failure", ["before", "after"])
def test_slot_whose_copies_were_not_taken_holds_nothing(failure, seed):
    """After a failed submission kernels read what they need, and no copy writes under them."""
    pick = random.Random(seed).choice
    simulated = simulation(5, 2, seed)
    simulated.step(PREFETCH)
    for _ in range(30):
        simulated.copier.next_fails = pick([failure, None])
        with contextlib.suppress(CopyFailed):
            simulated.step(pick([PREFETCH, SELECTIVE, DIRECT]))


def test_selective_brings_again_what_another_layer_of_the_slot_has_overwritten():
    simulated = simulation(4, 2)
    for _ in range(3):
        simulated.step(SELECTIVE, num_chosen=2)
    assert simulated.counters.bytes_fetched["selective"] == [3 * 4 * 2]


def test_graph_that_copies_finds_no_copy_under_way_and_leaves_nothing_to_rely_on():
    simulated = simulation(4, 2)
    simulated.scheduler.start()
    simulated.step(PREFETCH)
    simulated.replay_graph(SELECTIVE)
    simulated.step(PREFETCH)
    simulated.replay_graph(SELECTIVE)
    simulated.step(SELECTIVE)
    assert simulated.counters.misses == 2


@pytest.mark.parametrize("mode", [DIRECT, PREFETCH])
def test_graph_of_a_direct_step_leaves_slots_warm(mode):
    simulated = simulation(5, 2)
    simulated.scheduler.start()
    for _ in range(3):
        simulated.step(PREFETCH)
        simulated.replay_graph(mode)
    assert simulated.counters.misses == 0


def test_selective_steps_teach_nothing_about_uses():
    simulated = simulation(6, 2)
    simulated.scheduler.start()
    simulated.step(PREFETCH)
    for _ in range(5):
        simulated.step(SELECTIVE)
    simulated.step(PREFETCH)
    misses = simulated.counters.misses
    simulated.step(PREFETCH)
    assert simulated.counters.misses == misses


def test_nothing_is_copied_after_a_stop():
    for seed in range(20):
        simulated = simulation(5, 2, seed)
        simulated.scheduler.start()
        simulated.step(PREFETCH)
        simulated.scheduler.stop()
        assert not simulated.copier.is_busy
        simulated.step(PREFETCH)
