# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ranks load in turns, so many at a time, and end with the cause if one of them fails."""

import pytest

LOAD_S = 0.7


def interval(rank):
    """When the rank began to load, and when it had loaded."""
    begin = end = None
    while (line := rank.next_line()) is not None:
        said = line.rpartition(" ")
        begin = float(said[2]) if said[0] == "begins" else begin
        end = float(said[2]) if said[0] == "has loaded" else end
    return begin, end


def most_at_once(intervals):
    return max(sum(a <= begin < b for a, b in intervals) for begin, _ in intervals)


@pytest.mark.parametrize(("concurrency", "expected"), [(1, 1), (2, 2), (4, 4), (None, 4)])
def test_so_many_ranks_load_at_a_time(start, concurrency, expected):
    ranks = [start(r, 4, load_s=LOAD_S, load_concurrency=concurrency) for r in range(4)]
    assert most_at_once([interval(rank) for rank in ranks]) == expected


def test_each_group_has_turns_of_its_own(start):
    ranks = [start(r, 4, 2, load_s=LOAD_S, load_concurrency=1) for r in range(4)]
    intervals = [interval(rank) for rank in ranks]
    assert most_at_once(intervals[:2]) == most_at_once(intervals[2:]) == 1
    assert most_at_once(intervals) == 2


def test_a_rank_that_fails_in_its_turn_ends_those_that_wait(start):
    ranks = [
        start(r, 3, load_concurrency=1, **({"fail": "bad"} if r == 1 else {})) for r in range(3)
    ]
    sentence = "end: dwdp rank 1 failed while loading: ValueError: bad"
    assert [rank.ending() for rank in ranks] == [sentence] * 3
