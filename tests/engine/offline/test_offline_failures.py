# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A call one of whose prompts ends its ranks, and a job that can't start."""

import shutil

import pytest
from deadly_word import DeadlyWord
from test_offline import rank_processes
from vllm import SamplingParams

from vllm_dwdp import LLM, PromptsFailed, RankDied

pytestmark = pytest.mark.whole

OPTIONS = {"data_parallel_size": 2, "enforce_eager": True, "max_model_len": 512}
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
DEADLY = SamplingParams(temperature=0, max_tokens=8, extra_args={"deadly": True})


def test_prompt_that_ends_two_ranks_costs_no_other_prompt_its_output(demo_model):
    prompts = [f"Emma was {n}" for n in range(12)]
    params = [GREEDY] * 12
    params[3] = DEADLY
    with LLM(str(demo_model), logits_processors=[DeadlyWord], **OPTIONS) as llm:
        with pytest.raises(
            PromptsFailed, match=r"1 of 12 .* Prompt 3: dwdp rank .* died"
        ) as caught:
            llm.generate(prompts, params, use_tqdm=False)
        assert [output and output.prompt for output in caught.value.outputs] == [
            None if n == 3 else prompt for n, prompt in enumerate(prompts)
        ]
        assert len(llm.generate(prompts, GREEDY, use_tqdm=False)) == 12, "it can still be used"
    assert rank_processes() == []


def test_job_that_can_not_start_raises_the_sentence_of_its_group(demo_model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(demo_model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4096])
    with pytest.raises(RankDied, match=r"^dwdp rank \d failed while loading: ") as caught:
        LLM(str(broken), **OPTIONS)
    assert "Engine core initialization failed" not in str(caught.value)
    assert rank_processes() == []


def test_refused_configuration_raises_its_sentence(demo_model):
    with pytest.raises(RankDied, match=r"a dwdp rank is one worker, got tensor_parallel_size=2; "):
        LLM(str(demo_model), tensor_parallel_size=2, **OPTIONS)
