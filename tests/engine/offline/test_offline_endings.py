# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A script with vllm_dwdp.LLM ends soon, with its own exit code, and leaves no process.

That holds for a last line, an exception, Ctrl-C and SIGKILL.
"""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

pytestmark = pytest.mark.whole

END_S = 30
GONE_S = 60
HEAD = """
    import os, sys, tempfile, threading, time, weakref
    kept = tempfile.TemporaryDirectory()  # registers an exit handler before multiprocessing does
    from vllm import SamplingParams
    from vllm_dwdp import LLM

    def say(word):
        print("SAID", word, time.time(), flush=True)

    def in_flight(llm):
        params = SamplingParams(temperature=0, max_tokens=480, ignore_eos=True)
        say("running")
        return llm.generate(["Emma was"] * 400, params, use_tqdm=False)

    def build_in_child():
        global held
        held = LLM(MODEL, enforce_eager=True, max_model_len=512)
        say("built")

    if __name__ == "__main__":
"""
BUILD = """
    say("loading")
    llm = LLM(MODEL, enforce_eager=True, max_model_len=512)
"""


class Script:
    """A running script, in a session of its own with all processes that descend from it."""

    def __init__(self, folder, model, body):
        self._out = folder / "out"
        file = folder / "script.py"
        text = textwrap.dedent(HEAD) + textwrap.indent(body, "    ")
        file.write_text(f"MODEL = {str(model)!r}\n{text}")
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, file],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def text(self):
        return self._out.read_text(errors="replace")

    def wait_for(self, word, timeout_s=300):
        """Wait until the script says the word; returns the time at which it did, in seconds."""
        deadline = time.monotonic() + timeout_s
        while True:
            for line in self.text().splitlines():
                if line.startswith(f"SAID {word} "):
                    return float(line.split()[2])
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()[-3000:]
            time.sleep(0.05)

    def processes(self):
        """The processes of the session: the script and all it started, orphans included.

        Their `info` has the name and status read now: a process may end before the caller asks.
        """
        found = []
        for process in psutil.process_iter(["name", "status"]):
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid:
                    found.append(process)
        return found

    def wait_until_gone(self, timeout_s):
        deadline = time.monotonic() + timeout_s
        while left := [p for p in self.processes() if p.info["status"] != psutil.STATUS_ZOMBIE]:
            assert time.monotonic() < deadline, (left, self.text()[-3000:])
            time.sleep(0.2)

    def end(self):
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


@pytest.fixture
def run(tmp_path, demo_model):
    started = []

    def start(body, *, before=BUILD):
        body = textwrap.dedent(before) + textwrap.dedent(body)
        started.append(Script(tmp_path, demo_model, body))
        return started[-1]

    yield start
    for script in started:
        script.end()


LAST_LINES = {
    "exit_code_in_a_cycle_with_prompts_in_flight": (
        """
        class Holder: pass
        holder = Holder()
        holder.me, holder.llm = holder, llm
        threading.Thread(target=in_flight, args=(llm,), daemon=True).start()
        time.sleep(2)
        say('last')
        sys.exit(3)
        """,
        3,
    ),
    "exception_after_a_shutdown_of_a_running_call": (
        """
        def call():
            try:
                in_flight(llm)
            except RuntimeError as error:
                say('refused:' + str(error).replace(' ', '_'))
        thread = threading.Thread(target=call)
        thread.start()
        time.sleep(2)
        llm.shutdown()
        thread.join(20)
        assert not thread.is_alive()
        say('last')
        raise ValueError('the end')
        """,
        1,
    ),
}


@pytest.mark.parametrize("name", LAST_LINES)
def test_script_ends_after_its_last_line_with_its_own_exit_code(run, name):
    body, expected = LAST_LINES[name]
    script = run(body)
    said = script.wait_for("last")
    assert script.process.wait(END_S) == expected, script.text()[-3000:]
    assert time.time() - said < END_S
    script.wait_until_gone(5)
    if "shutdown" in name:
        assert "SAID refused:this_vllm_dwdp.LLM_was_shut_down" in script.text()


def test_ctrl_c_ends_a_call_and_sigkill_all_processes(run):
    script = run(
        """
        try:
            in_flight(llm)
        except KeyboardInterrupt:
            say('interrupted')
        (output,) = llm.generate(['Emma was'], SamplingParams(max_tokens=4), use_tqdm=False)
        say('answered')
        in_flight(llm)
        """
    )
    script.wait_for("running")
    time.sleep(2)
    os.killpg(script.process.pid, signal.SIGINT)
    assert script.wait_for("answered", 30) - script.wait_for("interrupted", 10) < 10
    time.sleep(2)
    script.process.kill()
    script.wait_until_gone(GONE_S)


def test_child_process_that_built_one_ends(run):
    """multiprocessing ends child processes without running Python's exit handlers."""
    script = run(
        """
        import multiprocessing
        child = multiprocessing.get_context("spawn").Process(target=build_in_child)
        child.start()
        child.join()
        say(f"child_ended_{child.exitcode}")
        """,
        before="",
    )
    assert script.wait_for("child_ended_0") - script.wait_for("built") < END_S
    script.wait_until_gone(GONE_S)


def test_script_that_is_killed_while_loading_leaves_no_process(run):
    script = run("say('never')")
    script.wait_for("loading")
    while not any("Worker" in process.info["name"] for process in script.processes()):
        assert script.process.poll() is None, script.text()[-3000:]
        time.sleep(0.05)
    script.process.kill()
    script.wait_until_gone(GONE_S)
