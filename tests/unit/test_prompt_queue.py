# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
import pytest

from vllm_dwdp.offline.errors import RankDied
from vllm_dwdp.offline.prompt_queue import PromptQueue

ITEMS = list("abcdef")


def queue(**options):
    return PromptQueue(10, ITEMS, **{"limit": 2, **options})


def ids(taken):
    return [item_id for item_id, _ in taken]


def finish_all(items, taken):
    for item_id, item in taken:
        assert items.finish(item_id, item.upper(), is_error=False)


def test_items_are_handed_out_in_order_in_batches_up_to_the_limit():
    items = queue(limit=3, batch=2)
    assert items.take(0) == [(10, "a"), (11, "b")]
    assert ids(items.take(2)) == [12]
    assert items.take(3) == []


def test_results_stand_in_the_order_of_items_whoever_is_first():
    items = queue(limit=6, batch=6)
    finish_all(items, reversed(items.take(0)))
    assert items.results == list("ABCDEF")
    assert items.num_open == 0


def test_result_of_another_call_is_none_of_this_one():
    items = queue()
    items.take(0)
    assert not items.finish(9, "x", is_error=False)
    assert items.finish(10, "A", is_error=False)
    assert not items.finish(10, "B", is_error=False)
    assert items.results[0] == "A"


def test_first_refusal_hands_out_no_more_but_waits_for_what_is_in_flight():
    items = queue(stops_at_error=True)
    (first,), (second,) = items.take(0), items.take(1)
    items.finish(second[0], ValueError("second"), is_error=True)
    assert items.take(0) == []
    assert items.num_open == 1
    items.finish(first[0], ValueError("first"), is_error=True)
    assert items.num_open == 0
    assert {index: str(error) for index, error in items.errors.items()} == {0: "first", 1: "second"}


def test_prompts_of_a_dead_rank_come_last_and_alone():
    items = queue()
    on_dead = [*items.take(0), *items.take(1)]
    assert items.rank_died(0, set(ids(on_dead))) == 0
    others = [*items.take(0), *items.take(1)]
    assert ids(others) == [12, 13]
    finish_all(items, others)
    finish_all(items, [*items.take(0), *items.take(1)])
    retried = items.take(0)
    assert ids(retried) == [10]
    assert items.take(1) == []
    finish_all(items, retried)
    finish_all(items, items.take(0))
    assert items.results == list("ABCDEF")
    assert items.errors == {}


def test_prompt_that_ends_its_rank_twice_fails_and_takes_no_other_with_it():
    items = queue()
    assert items.rank_died(0, set(ids([*items.take(0), *items.take(1)]))) == 0
    while items.num_open > 2:
        finish_all(items, items.take(0))
    assert items.rank_died(1, set(ids(items.take(0)))) == 1
    finish_all(items, items.take(0))
    assert items.num_open == 0
    assert items.results == [None, *"BCDEF"]
    assert isinstance(items.errors[0], RankDied)
    assert "dwdp rank 1 died with it" in str(items.errors[0])


def test_the_last_prompts_go_longest_first():
    items = queue(limit=6, batch=6, lengths=[1, 9, 2, 5, 3, 7], num_last=4)
    assert ids(items.take(0)) == [10, 11, 15, 13, 14, 12]
    assert items.tokens_of([11, 12]) == 11
    assert queue().tokens_of([11, 12]) == 2
    finish_all(items, [(10 + i, ITEMS[i]) for i in range(6)])
    assert items.results == list("ABCDEF"), "results stand in the order of the prompts"


@pytest.mark.parametrize("num_last", [0, 6, 100])
def test_every_prompt_is_handed_out_once(num_last):
    items = queue(limit=6, batch=6, lengths=[1, 9, 2, 5, 3, 7], num_last=num_last)
    assert sorted(ids(items.take(0))) == list(range(10, 16))
