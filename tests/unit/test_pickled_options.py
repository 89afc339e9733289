# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Options may be classes and functions of a script; ranks find them in their own import of it."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vllm_dwdp.offline.pickled_options import PickledOptions

SCRIPT = """
import threading
from options_reader import read_in_a_child

LOCK = threading.Lock()

class Processor:
    class Inner: ...

def override(config):
    return config

def override_with_a_lock(config):
    with LOCK:
        return config

if __name__ == "__main__":
    class Late: ...
    read_in_a_child({OPTIONS})
"""
OF_SCRIPT = '"a": Processor, "b": Processor.Inner, "c": override'


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a script whose child process reads options; returns the lines that it prints.

    form: run the script as a file, as a module, or as a text.
    """
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{tmp_path}")

    def start(options, form="file"):
        text = SCRIPT.replace("OPTIONS", options)
        path = tmp_path / "the_script.py"
        path.write_text(text)
        arguments = {"file": [path], "module": ["-m", "the_script"], "text": ["-c", text]}[form]
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout.splitlines()

    return start


@pytest.mark.parametrize("form", ["file", "module"])
def test_definitions_of_a_script_are_those_of_the_ranks_own_copy(run, form):
    assert run(OF_SCRIPT, form) == [f"{name} is found by name" for name in "abc"]


def test_definitions_that_no_rank_can_import_are_sent_as_copies(run):
    assert run(OF_SCRIPT, "text") == [f"{name} is a copy" for name in "abc"]
    assert run('"a": Late') == ["a is a copy"]


def test_function_that_uses_what_does_not_pickle_needs_a_script_that_ranks_import(run):
    options = '"a": override_with_a_lock'
    assert run(options) == ["a is found by name"]
    (line,) = run(options, "text")
    assert line.startswith("refused: an option of the LLM can't be read: AttributeError: ")
    assert "'override_with_a_lock'" in line and "define its class where" in line


def test_what_can_not_be_sent_is_refused_in_the_caller():
    with pytest.raises(TypeError, match="pickle"):
        PickledOptions.of({"hf_overrides": threading.Lock()})
