# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A script may give vllm_dwdp.LLM classes and functions that it defines, as with vllm.LLM."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.whole

TOKEN, POSITIONS = 7, 64
SCRIPT = """
import json
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm_dwdp import LLM

class OneToken(LogitsProcessor):
    def __init__(self, vllm_config, device, is_pin_memory): ...
    def is_argmax_invariant(self): return False
    def update_state(self, batch_update): ...
    def apply(self, logits):
        only = torch.full_like(logits, -torch.inf)
        only[:, TOKEN] = 0
        return only

def with_few_positions(config):
    config.max_position_embeddings = POSITIONS
    return config

def outcome(call):
    try:
        return [list(output.outputs[0].token_ids) for output in call()]
    except Exception as error:
        return f"{type(error).__name__}: {error}"

if __name__ == "__main__":
    class Shout(str): ...
    options = {"logits_processors": [OneToken], "hf_overrides": with_few_positions}
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    with LLM(MODEL, enforce_eager=True, **options) as llm:
        prompts = ["Emma was", "and " * 200, Shout("Emma was"), "Emma was"]
        found = [outcome(lambda: llm.generate([p], params, use_tqdm=False)) for p in prompts]
    print("FOUND", json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory, demo_model):
    """Outcomes of four prompts: a good one, a too long one, an unreadable one, and a good one."""
    file = tmp_path_factory.mktemp("script") / "script.py"
    constants = f"MODEL, TOKEN, POSITIONS = {str(demo_model)!r}, {TOKEN}, {POSITIONS}\n"
    file.write_text(constants + SCRIPT)
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=400)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert done.returncode == 0 and lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[0].removeprefix("FOUND "))


def test_logits_processor_of_the_script_chooses_the_tokens(found):
    assert found[0] == [[TOKEN] * 4]


def test_function_of_the_script_changes_the_configuration_of_the_model(found):
    assert f"maximum context length is {POSITIONS}" in found[1]


def test_prompt_of_a_class_under_the_guard_is_refused_and_the_next_one_served(found):
    assert found[2].startswith("TypeError: this prompt or its parameters can't be read: ")
    assert "Can't get attribute 'Shout'" in found[2]
    assert found[3] == found[0]
