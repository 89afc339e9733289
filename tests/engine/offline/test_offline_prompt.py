# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Sampling parameters of an offline call: one for all prompts, or a sequence, as in vllm.LLM."""

import pytest
from vllm import SamplingParams

from vllm_dwdp.offline.prompt import raw_prompts

pytestmark = pytest.mark.whole

GREEDY, SHORT = SamplingParams(temperature=0), SamplingParams(max_tokens=1)


def params_of(prompts, params):
    return [raw.params for raw in raw_prompts("generate", prompts, params, {})]


def test_one_for_all_or_one_for_each():
    assert params_of("ab", GREEDY) == [(GREEDY,)]
    assert params_of(["a", "b"], GREEDY) == [(GREEDY,), (GREEDY,)]
    assert params_of(["a", "b"], (GREEDY, SHORT)) == [(GREEDY,), (SHORT,)]
    assert params_of(["a", "b"], None) == [None, None]


@pytest.mark.parametrize(
    "params",
    [{0: GREEDY}.values(), (p for p in [GREEDY]), {"temperature": 0}, [None], [[GREEDY]]],
    ids=lambda params: type(params).__name__,
)
def test_what_are_no_parameters_gets_the_sentence_of_vllm(params):
    """vLLM takes an iterable that is no sequence for one parameter object, and refuses it."""
    name = type(params[0] if isinstance(params, list) else params).__name__
    sentence = f"^params must be either SamplingParams or PoolingParams, but got {name}$"
    with pytest.raises(TypeError, match=sentence):
        params_of(["a"], params)
    if not isinstance(params, list):
        assert params_of([], params) == []
