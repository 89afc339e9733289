# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""vllm_dwdp.LLM has an answer to every method of vllm.LLM, and divides calls into batches."""

from pathlib import Path

import pytest
from llm_methods import methods_of_vllm, shown, table

from vllm_dwdp import LLM
from vllm_dwdp.offline.batch import Batch, batches
from vllm_dwdp.offline.refused_methods import REFUSED, RefusedMethods

pytestmark = pytest.mark.whole

PAGE = Path(__file__).resolve().parents[3] / "docs" / "llm.md"


def test_every_method_of_vllms_class_is_there_or_refused():
    assert [name for name in methods_of_vllm() if not callable(getattr(LLM, name, None))] == []


def test_the_page_lists_every_method():
    assert shown(PAGE.read_text()) == table()


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_method_ends_in_a_sentence(name):
    if not hasattr(LLM, name):
        pytest.fail(f"{name} isn't a method")
    with pytest.raises(NotImplementedError, match=rf"vllm_dwdp.LLM.{name}: .*peers read"):
        getattr(RefusedMethods(), name)(1, option=2)


def test_parts_of_an_engine_are_refused_by_name():
    with pytest.raises(AttributeError, match="no llm_engine: it has an engine for each rank"):
        _ = RefusedMethods().llm_engine
    with pytest.raises(AttributeError, match="has no attribute 'genrate'"):
        _ = RefusedMethods().genrate


def cut(method, max_prompts=3, num_ranks=2, **arguments):
    found = batches(method, arguments, num_ranks=num_ranks, max_prompts=max_prompts)
    assert all(batch.method == method for batch in found)
    return [(batch.arguments, batch.num_prompts) for batch in found]


def test_prompts_and_their_options_are_divided_alike():
    found = cut(
        "embed", prompts=list("abcdefg" * 8), lora_request=list(range(56)), pooling_params=1
    )
    assert [number for _, number in found] == [3] * 18 + [2]
    assert [a for part, _ in found for a in part["prompts"]] == list("abcdefg" * 8)
    assert [a for part, _ in found for a in part["lora_request"]] == list(range(56))
    assert {part["pooling_params"] for part, _ in found} == {1}


@pytest.mark.parametrize(
    ("num_prompts", "sizes"), [(0, [0]), (1, [1]), (9, [1] * 9), (17, [2] * 8 + [1])]
)
def test_few_prompts_still_go_to_all_ranks(num_prompts, sizes):
    assert [number for _, number in cut("embed", prompts=["a"] * num_prompts)] == sizes


@pytest.mark.parametrize("prompts", ["one text", [1, 2, 3], {"prompt": "a text"}])
def test_one_prompt_is_one_batch(prompts):
    (found,) = cut("encode", prompts=prompts)
    assert found == ({"prompts": [prompts]}, 1)


def test_a_query_goes_with_every_batch_of_texts():
    found = cut("score", data_1="query", data_2=list("abcdefgh"), max_prompts=4, num_ranks=1)
    assert found == [
        ({"data_1": "query", "data_2": list(two)}, 2) for two in ("ab", "cd", "ef", "gh")
    ]


def test_pairs_are_divided_together():
    found = cut("score", data_1=[1, 2, 3, 4], data_2=[5, 6, 7, 8], num_ranks=1)
    assert found == [({"data_1": [a], "data_2": [a + 4]}, 1) for a in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"data_1": [1, 2], "data_2": [1, 2, 3]},
        {"prompts": ["a", "b"], "lora_request": [1, 2, 3]},
        {"prompts": {"data": "of a plugin"}},
    ],
)
def test_what_cannot_be_divided_goes_to_one_rank_as_it_is(arguments):
    assert cut("score", **arguments) == [(arguments, 1)]


class Stock:
    def score(self, data_1, data_2, /, *, use_tqdm=True, chat_template=None):
        return [data_1, data_2, use_tqdm, chat_template]


def test_a_batch_calls_the_method_with_positional_arguments_too():
    batch = Batch("score", {"data_1": "a", "data_2": ["b"], "chat_template": "t"}, 1)
    assert batch.run_on(Stock()) == ["a", ["b"], False, "t"]
