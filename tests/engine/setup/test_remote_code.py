# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Processes that start together copy a model's own Python files in turn."""

import json
import os
import subprocess
import sys

import pytest

LOAD = """
import shutil, sys, time
from transformers import AutoConfig, dynamic_module_utils
from vllm_dwdp.engine.setup.remote_code import copy_in_turn

model, log, is_in_turn, num_processes = sys.argv[1:]
stock_copy = shutil.copyfile

def slow_copy(source, target):
    note("begin")
    time.sleep(0.3)
    stock_copy(source, target)
    note("end")

def note(what):
    with open(log, "a") as file:
        file.write(what + chr(10))

dynamic_module_utils.shutil.copyfile = slow_copy
if is_in_turn == "yes":
    copy_in_turn()
    copy_in_turn()
note("ready")
while open(log).read().count("ready") < int(num_processes):
    time.sleep(0.01)
assert AutoConfig.from_pretrained(model, trust_remote_code=True).answer() == 42
"""
CONFIG = """
from transformers import PretrainedConfig
from .helper import ANSWER

class OddConfig(PretrainedConfig):
    model_type = "odd"

    def answer(self):
        return ANSWER
"""


@pytest.fixture
def model(tmp_path):
    """A model whose configuration is Python code of its own, in two files."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "odd", "auto_map": {"AutoConfig": "configuration_odd.OddConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_odd.py").write_text(CONFIG)
    (folder / "helper.py").write_text("ANSWER = 42\n")
    return folder


def load_together(model, cache, *, is_in_turn, number=3):
    """Load the configuration in several processes; returns what they wrote about their copies."""
    log = cache.with_suffix(".log")
    arguments = [str(model), str(log), "yes" if is_in_turn else "no", str(number)]
    environment = os.environ | {"HF_MODULES_CACHE": str(cache)}
    command = [sys.executable, "-c", LOAD, *arguments]
    processes = [subprocess.Popen(command, env=environment) for _ in range(number)]
    endings = [process.wait(timeout=120) for process in processes]
    assert not is_in_turn or endings == [0] * number
    return [line for line in log.read_text().split() if line != "ready"]


def test_one_process_copies_and_the_others_find_whole_files(model, tmp_path):
    notes = load_together(model, tmp_path / "cache", is_in_turn=True)
    assert notes == ["begin", "end"] * 2  # for each of the two files


def test_without_turns_several_processes_write_the_same_file_at_once(model, tmp_path):
    """The reason for all this; if Transformers takes turns one day, the wrapper can go."""
    notes = load_together(model, tmp_path / "cache", is_in_turn=False)
    assert notes[:2] == ["begin", "begin"]


def test_a_cache_that_cannot_be_locked_is_used_without_a_lock(model, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / ".dwdp.lock").mkdir()  # so that opening the lock fails
    notes = load_together(model, cache, is_in_turn=True, number=1)
    assert notes == ["begin", "end"] * 2


def test_the_plugin_takes_turns_in_every_process():
    code = (
        "from vllm.plugins import load_general_plugins; load_general_plugins(); "
        "from transformers.dynamic_module_utils import get_cached_module_file as copy; "
        "print(getattr(copy, 'is_in_turn', False))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "True"
