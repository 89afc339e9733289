# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One sentence says which ranks can't read which peers; it is short for any number of ranks."""

from vllm_dwdp.group.handover.votes import reason_against


def votes(size, fails):
    return [
        {peer: "no way" if fails(rank, peer) else None for peer in range(size) if peer != rank}
        for rank in range(size)
    ]


def test_pairs_that_all_can_have_no_reason():
    assert reason_against(votes(4, lambda rank, peer: False), range(4), by="post") is None


def test_the_first_pair_and_all_others_are_named():
    one_way = votes(3, lambda rank, peer: peer == 2)
    assert reason_against(one_way, range(3), by="post") == (
        "dwdp rank 0 can't read the memory of rank 2 by post: no way "
        "(pairs that can't: 2->0, 2->1, of 6)"
    )


def test_numbers_are_those_of_the_job():
    votes_of_second_group = [{5: "no way"}, {4: None}]
    reason = reason_against(votes_of_second_group, range(4, 6), by="post")
    assert "rank 4 can't read the memory of rank 5" in reason


def test_many_pairs_are_counted():
    reason = reason_against(votes(72, lambda rank, peer: True), range(72), by="post")
    assert "16->0 and 5096 more, of 5112)" in reason
    assert len(reason) < 300
