# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank that renders a prompt refuses what vLLM can't send to its engine, or the engine read."""

import numpy
import pytest
from rank_stand_in import prompt_of, standing_in
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

UNSENDABLE = {
    "a range": prompt_of({"prompt_token_ids": range(4)}),
    "a number of NumPy": prompt_of("a", SamplingParams(temperature=numpy.float32(0.5))),
    "an object": prompt_of("a", SamplingParams(extra_args={"mood": object()})),
}
UNREADABLE = {
    "truth values": (
        prompt_of({"prompt_token_ids": [True, False]}),
        "Expected `int`, got `bool` - at `prompt_token_ids[0]`",
    ),
    "an array as priority": (
        prompt_of("a", priority=[numpy.array([0, 1])]),
        "Expected `int`, got `array` - at `priority`",
    ),
    "a seed in words": (
        prompt_of("a", SamplingParams(seed="five")),
        "Expected `int | null`, got `str` - at `sampling_params.seed`",
    ),
}


@pytest.fixture(scope="module")
def rank():
    with standing_in() as rank:
        yield rank


@pytest.mark.parametrize("name", UNSENDABLE)
def test_what_vllm_can_not_send_is_refused_with_its_exception(rank, name):
    ((is_error, error),) = rank.answers("render", UNSENDABLE[name]).values()
    assert is_error
    with pytest.raises(TypeError, match=r"^Object of type .* is not serializable"):
        raise error


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_the_engine_can_not_read_is_refused_with_the_name_of_the_field(rank, name):
    prompt, reason = UNREADABLE[name]
    ((is_error, error),) = rank.answers("render", prompt).values()
    assert is_error and type(error) is VLLMValidationError
    assert str(error) == f"vLLM's engine can't read this prompt: {reason}"


def test_prompt_that_the_engine_can_read_is_rendered(rank):
    params = SamplingParams(temperature=0.5, seed=5, extra_args={"mood": ["glad"]})
    ((is_error, rendered),) = rank.answers("render", prompt_of("ab", params)).values()
    assert (is_error, rendered.prompt["prompt_token_ids"]) == (False, [97, 98])
