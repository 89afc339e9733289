# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The sentence that a failed rank leaves on its job's board is the last line of the command."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from argparse import Namespace

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_dwdp.engine.setup import last_words
from vllm_dwdp.engine.worker import base as worker
from vllm_dwdp.engine.worker.cpu import DwdpCPUWorker
from vllm_dwdp.group.errors import RankFailed
from vllm_dwdp.group.meet import job_board

FRONT_END = """
import subprocess, sys, weakref
from argparse import Namespace
from vllm_dwdp.engine.setup import last_words
from vllm_dwdp.group.meet import job_board
last_words.print_at_exit()
config = Namespace()
job_board.put_up(config)
manager = weakref.finalize(last_words, print, "ending the other processes", file=sys.stderr)
subprocess.run([sys.executable, "-c", {rank!r}, config.dwdp_board], check=True)
del config
{end}
"""
RANK = """
import sys
from argparse import Namespace
from vllm_dwdp.engine.setup import last_words
from vllm_dwdp.group.errors import RankFailed
config = Namespace(dwdp_board=sys.argv[1])
last_words.leave(config, RankFailed("dwdp rank 1 failed while loading: no file."), job_rank=0)
last_words.leave(config, ValueError("an echo"), job_rank=1)
"""


@pytest.fixture
def stderr_of_front_end(tmp_path):
    def run(end, name="script"):
        path = tmp_path / name
        path.write_text(FRONT_END.format(rank=RANK, end=end))
        done = subprocess.run([sys.executable, path], capture_output=True, text=True)
        return done.stderr.splitlines()

    return run


def test_first_sentence_of_a_rank_is_the_last_line_of_a_command_that_fails(stderr_of_front_end):
    lines = stderr_of_front_end("raise RuntimeError('Engine core initialization failed.')")
    assert "RuntimeError: Engine core initialization failed." in lines
    assert lines[-2:] == [
        "ending the other processes",
        "dwdp rank 1 failed while loading: no file.",
    ]


def test_script_that_goes_on_after_a_failure_does_not_repeat_it(stderr_of_front_end):
    assert stderr_of_front_end("") == ["ending the other processes"]


def test_script_that_fails_for_another_reason_does_not_repeat_it(stderr_of_front_end):
    lines = stderr_of_front_end("raise ValueError('something else')")
    assert lines[-2:] == ["ValueError: something else", "ending the other processes"]


def test_vllms_command_says_it_even_if_vllm_takes_it_for_no_error(stderr_of_front_end):
    assert stderr_of_front_end("", name="vllm")[-1] == "dwdp rank 1 failed while loading: no file."


def test_other_errors_name_the_rank_and_fit_a_line():
    config = Namespace()
    job_board.put_up(config)
    last_words.leave(config, ValueError("too\n  small"), job_rank=3)
    assert last_words.left() == "dwdp rank 3 failed while starting: ValueError: too small"


def test_worker_that_could_say_nothing_is_named():
    config = Namespace()
    job_board.put_up(config)
    error = RuntimeError("WorkerProc initialization failed due to an exception in a ...")
    last_words.leave(config, error, job_rank=1)
    assert last_words.left().startswith("dwdp rank 1 failed while starting: its worker ended; ")


def engine_that_cannot_start(config, signals):
    """Fail as an engine of vLLM does; exits with 0 if the engine's own signal handlers ran."""
    heard = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: heard.append(number))
    last_words.EngineFailure.hear(config, 1)
    for number in signals:
        os.kill(os.getpid(), number)
    try:
        raise RuntimeError("WorkerProc initialization failed due to an exception in a ...")
    except RuntimeError:
        logging.getLogger("vllm.v1.engine.core").exception("EngineCore failed to start.")
    os._exit(0 if heard == list(signals) else 1)


@pytest.mark.parametrize(
    ("signals", "is_reported"),
    [((), True), ((signal.SIGINT,), False), ((signal.SIGTERM,), False)],
    ids=["by itself", "Ctrl-C", "terminated"],
)
def test_engine_that_was_told_to_end_blames_nobody(signals, is_reported):
    config = Namespace()
    job_board.put_up(config)
    context = multiprocessing.get_context("fork")
    engine = context.Process(target=engine_that_cannot_start, args=(config, signals))
    engine.start()
    engine.join()
    assert engine.exitcode == 0, "vLLM's own handlers were called"
    assert (last_words.KEY in job_board.board_of(config).notes()) == is_reported


def test_sentence_of_refused_options_is_kept():
    with pytest.raises(RankFailed), last_words.of_refused_options():
        raise RankFailed("no.")
    assert last_words.left() == "no."


def test_file_that_is_no_board_stays_as_it_is(tmp_path):
    path = tmp_path / "file"
    path.write_text("text\n")
    with path.open() as other:
        board = job_board.JobBoard(f"/proc/{os.getpid()}/fd/{other.fileno()}")
        for use in (board.notes, lambda: board.post("key", "value")):
            with pytest.raises(FileNotFoundError, match="expected the board of a dwdp job"):
                use()
    assert path.read_text() == "text\n"


def test_worker_that_cannot_be_made_says_why(monkeypatch, demo_model):
    """The constructor of vLLM's worker may fail, for example for lack of free memory."""

    def refuse(*args, **kwargs):
        raise ValueError("too little memory")

    monkeypatch.setattr(CPUWorker, "__init__", refuse)
    monkeypatch.setattr(worker, "end_with_parent", lambda: None)
    config = EngineArgs(
        model=str(demo_model),
        distributed_executor_backend="dwdp",
        data_parallel_size=2,
        data_parallel_rank=1,
    ).create_engine_config()
    with pytest.raises(ValueError, match="too little memory"):
        DwdpCPUWorker(vllm_config=config, local_rank=0)
    expected = "dwdp rank 1 failed while starting: ValueError: too little memory"
    assert last_words.left() == expected
