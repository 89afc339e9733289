# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What one side of a rank's pipe can't unpickle is an error of that prompt alone."""

import queue
import sys
import threading
from multiprocessing import Pipe, Process

import pytest
from rank_stand_in import ANSWER_S, prompt_of, standing_in
from vllm import SamplingParams

from vllm_dwdp.offline.rank_child import RankChild
from vllm_dwdp.offline.rank_handle import RankHandle
from vllm_dwdp.offline.rank_inbox import RankInbox

UNREADABLE = r"can't be read: AttributeError: Can't get attribute 'Late' .*; define its class where"


@pytest.fixture
def define(monkeypatch):
    """Defines a class `Late` here after the rank was forked, so the rank can't import it.

    A script does the same when it defines a class under its `__main__` guard.
    """

    def make(base):
        late = type("Late", (base,), {"__module__": __name__})
        monkeypatch.setattr(sys.modules[__name__], "Late", late, raising=False)
        return late

    return make


@pytest.fixture
def silent_threads(monkeypatch):
    """Threads that end with an exception don't print it."""
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)


@pytest.mark.parametrize("kind", ["render", "run"])
def test_prompt_that_a_rank_can_not_read_costs_no_other_prompt(define, kind):
    with standing_in() as rank:
        late = define(str)
        answers = rank.answers(kind, prompt_of("a"), prompt_of(late("b")), prompt_of("c"))
        assert [is_error for is_error, _ in (answers[i] for i in range(3))] == [False, True, False]
        with pytest.raises(TypeError, match=f"^this prompt or its parameters {UNREADABLE}"):
            raise answers[1][1]
        ((is_error, again),) = rank.answers("run", prompt_of("d")).values()
        assert (is_error, again.prompt) == (False, "d"), "the rank serves later calls"


def test_parameters_that_a_rank_can_not_read_are_an_error(define):
    with standing_in() as rank:
        params = SamplingParams(extra_args={"mood": define(str)("glad")})
        ((is_error, error),) = rank.answers("render", prompt_of("a", params)).values()
        assert is_error and isinstance(error, TypeError)


def answer_with_a_class_of_its_own(prompt):
    text = prompt["prompt"]
    if text != "b":
        return text
    late = type("Late", (str,), {"__module__": __name__})
    sys.modules[__name__].Late = late
    return late(text)


def test_output_that_the_caller_can_not_read_costs_no_other_output():
    with standing_in(answer_with_a_class_of_its_own) as rank:
        answers = rank.answers("run", *map(prompt_of, "abc"))
        assert [answers[i][1].prompt for i in (0, 2)] == ["a", "c"]
        with pytest.raises(TypeError, match=f"^the answer of a rank {UNREADABLE}"):
            raise answers[1][1]


def answer_that_does_not_pickle(prompt):
    return (lambda: 0) if prompt["prompt"] == "b" else prompt["prompt"]


def test_output_that_does_not_pickle_costs_no_other_output():
    with standing_in(answer_that_does_not_pickle) as rank:
        answers = rank.answers("run", *map(prompt_of, "abc"))
        assert [answers[i][1].prompt for i in (0, 2)] == ["a", "c"]
        with pytest.raises(TypeError, match="expected prompts and options that pickle"):
            raise answers[1][1]


@pytest.mark.usefixtures("silent_threads")
def test_bytes_that_are_no_message_end_a_rank():
    ours, theirs = Pipe()
    ended = queue.SimpleQueue()
    RankInbox(theirs, on_end=lambda: ended.put(True))
    ours.send_bytes(b"no message")
    assert ended.get(timeout=ANSWER_S)


@pytest.mark.usefixtures("silent_threads")
def test_bytes_that_are_no_message_are_the_end_of_a_rank_for_its_caller():
    ours, theirs = Pipe()
    news = queue.SimpleQueue()
    process = Process(target=int)
    process.start()
    handle = RankHandle(0, RankChild(process, ours), news)
    theirs.send_bytes(b"no message")
    assert news.get(timeout=ANSWER_S) == (handle, ("ended", "its process ended (exit code 0)"))
