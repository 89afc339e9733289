# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ranks report their places; a rank that stays at one for too long is named with the place."""

import pytest

from vllm_dwdp.group.meet.progress import ADVICE, GroupProgress, Phase, Place, Progress

TIMEOUT_S = 10.0


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def group(clock):
    return GroupProgress([1, 2], timeout_s=TIMEOUT_S, clock=clock)


def test_place_survives_the_wire():
    place = Place(3, 4, "loading: a layer")
    assert Place.from_bytes(place.to_bytes()) == place


def test_every_step_phase_and_sign_of_life_is_another_place():
    progress = Progress()
    places = [progress.place]
    for change in (progress.enter, progress.step, progress.step, progress.wait, progress.wait):
        change("loading")
        places.append(progress.place)
    assert len(set(places)) == len(places)
    assert [place.num_steps for place in places] == [0, 1, 2, 3, 3, 3]


def test_phase_is_kept_while_details_change():
    progress = Progress()
    progress.enter(Phase.LOADING)
    progress.step("layer 3")
    assert progress.phase == "loading"
    assert progress.place.doing == "loading: layer 3"


def test_rank_that_takes_steps_does_not_hang_however_long_it_takes(group, clock):
    progress = Progress()
    for _ in range(5):
        clock.now_s += TIMEOUT_S
        progress.step("layer")
        for rank in (1, 2):
            group.hear(rank, progress.place)
        assert group.hanging_rank() is None
        assert not group.is_quiet


def test_rank_that_stays_at_a_place_is_named_with_it(group, clock):
    other = Progress()
    for passed_s, hangs in ((0, False), (TIMEOUT_S, False), (0.1, True)):
        clock.now_s += passed_s
        other.step("layer")
        group.hear(1, Place(3, 0, "loading: layer 3"))
        group.hear(2, other.place)
        assert (group.hanging_rank() == 1) is hangs
    assert group.describe(1) == f"dwdp rank 1 got no further for 10 s (loading: layer 3); {ADVICE}"


def test_of_two_that_hang_the_one_that_did_first_is_named(group, clock):
    group.hear(2, Place(1, 0, "joining"))
    clock.now_s += 1
    group.hear(1, Place(1, 0, "joining"))
    clock.now_s += TIMEOUT_S + 1
    assert group.hanging_rank() == 2


def test_rank_that_never_came_is_named_as_such(group, clock):
    group.hear(2, Place(1, 0, "joining"))
    clock.now_s += TIMEOUT_S + 1
    group.hear(2, Place(2, 0, "loading"))
    assert group.hanging_rank() == 1
    assert "dwdp rank 1 did not come to the rendezvous within 10 s" in group.describe(1)


def test_ranks_that_wait_for_each_other_for_ever_are_all_named(group, clock):
    progress = Progress()
    progress.enter(Phase.MEETING)
    for _ in range(12):
        assert not group.is_quiet
        clock.now_s += 1
        progress.wait("the other one")
        for rank in (1, 2):
            group.hear(rank, progress.place)
        assert group.hanging_rank() is None, "each shows signs of life"
    assert group.is_quiet
    sentence = group.describe_all()
    assert sentence.startswith("No rank of the group got further for 10 s: dwdp rank 1 is at 'meet")
    assert "dwdp rank 2 is at 'meeting its group: waiting for the other one'" in sentence


def test_group_is_quiet_only_if_no_rank_got_further(group, clock):
    clock.now_s += TIMEOUT_S + 1
    group.hear(2, Place(0, 0, "joining"))
    assert not group.is_quiet, "it has come"
    clock.now_s += TIMEOUT_S + 1
    assert group.is_quiet


def test_rank_that_left_is_not_waited_for(group, clock):
    clock.now_s += TIMEOUT_S + 1
    group.forget(1)
    assert group.hanging_rank() == 2
    group.forget(2)
    assert group.hanging_rank() is None
