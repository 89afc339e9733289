# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Options of vllm_dwdp.LLM that can't work are refused in a sentence, by the caller or a rank."""

import pydantic
import pytest
from vllm.config import CacheConfig

from vllm_dwdp.offline.options import check_at_least_one, rank_options
from vllm_dwdp.offline.rank_process import error_text


@pytest.mark.parametrize("names", ["", "other", "other,dwdp2"])
def test_plugins_without_dwdp_are_refused(monkeypatch, names):
    monkeypatch.setenv("VLLM_PLUGINS", names)
    with pytest.raises(ValueError, match=f"expected 'dwdp' among VLLM_PLUGINS, got '{names}'; add"):
        rank_options({})


def test_plugins_with_dwdp_are_accepted(monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "other,dwdp")
    assert rank_options({}) == {"distributed_executor_backend": "dwdp"}


@pytest.mark.parametrize("size", ["2", None, 2.0, True, [2]])
def test_sizes_that_are_no_plain_integers_are_refused(size):
    sentence = f"data_parallel_size must be an integer of at least 1, got {size!r}."
    with pytest.raises(TypeError) as caught:
        check_at_least_one(data_parallel_size=size)
    assert str(caught.value) == sentence
    check_at_least_one(data_parallel_size=2)


def test_error_of_a_configuration_names_the_option():
    with pytest.raises(pydantic.ValidationError) as caught:
        CacheConfig(block_size="many", gpu_memory_utilization=7)
    text = error_text(caught.value)
    assert "block_size: Input should be a valid integer" in text
    assert "; gpu_memory_utilization: Input should be less than or equal to 1" in text


def test_error_of_a_whole_configuration_is_its_sentence_alone():
    class Sizes(pydantic.BaseModel):
        @pydantic.model_validator(mode="after")
        def check(self):
            raise ValueError("expected fewer ranks")

    with pytest.raises(pydantic.ValidationError) as caught:
        Sizes()
    assert error_text(caught.value) == "Value error, expected fewer ranks"
    assert error_text(KeyError("model")) == "KeyError: 'model'"
