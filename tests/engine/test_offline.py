# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""vllm_dwdp.LLM beyond parity: order, chat, a notebook's event loop, ranks that die."""

import asyncio
import contextlib
import logging
import multiprocessing
import threading
import time

import leftovers
import psutil
import pytest
import tqdm
from vllm import SamplingParams

from vllm_dwdp import LLM
from vllm_dwdp.engine.llm import RankDied

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
PROMPTS = [start + " and" * n for n in range(8) for start in ("Emma was", "In the beginning")]


@pytest.fixture(scope="module")
def llm(demo_model):
    made = LLM(
        str(demo_model),
        data_parallel_size=2,
        max_in_flight=2,
        enforce_eager=True,
        max_model_len=512,
    )
    yield made
    made.shutdown()
    assert leftovers.of_these_tests() == set()
    assert rank_processes() == []


def rank_processes():
    return [p for p in multiprocessing.active_children() if p.name.startswith("dwdp-rank-")]


def test_outputs_come_in_the_order_of_prompts_from_all_ranks(llm, capsys):
    before = [sum(stats["forwards"]) for stats in llm.dwdp_stats()]
    outputs = llm.generate(PROMPTS, GREEDY)
    assert [output.prompt for output in outputs] == PROMPTS
    assert all(len(output.outputs[0].token_ids) == 8 for output in outputs)
    after = [sum(stats["forwards"]) for stats in llm.dwdp_stats()]
    assert all(a > b for a, b in zip(after, before, strict=True))
    assert "16/16" in capsys.readouterr().err


def test_chat_takes_one_conversation_or_several(llm):
    conversation = [{"role": "user", "content": "In the beginning"}]
    (alone,) = llm.chat(conversation, GREEDY, use_tqdm=False)
    both = llm.chat([conversation, conversation], GREEDY, use_tqdm=False)
    assert [output.outputs[0].text for output in both] == [alone.outputs[0].text] * 2


def test_works_inside_a_running_event_loop(llm):
    async def cell():
        return llm.generate("Emma was", GREEDY, use_tqdm=False)

    (output,) = asyncio.run(cell())
    assert output.prompt == "Emma was"


def test_refused_prompt_is_an_error_and_costs_no_rank(llm):
    with pytest.raises(ValueError, match=r"1 of 2 prompts failed, first prompt 1: .*512"):
        llm.generate(["Emma was", "and " * 2000], GREEDY, use_tqdm=False)
    assert len(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == len(PROMPTS)


def test_call_that_was_broken_off_leaves_no_answer_for_the_next(llm):
    with pytest.raises(Exception, match="pickle"):
        llm.generate([PROMPTS[0], threading.Lock()], GREEDY)
    stats = llm.dwdp_stats()
    (output,) = llm.generate(["And it came to pass"], GREEDY)
    assert output.prompt == "And it came to pass"
    assert len(stats) == 2


def test_token_ids_alone_are_one_prompt_and_request_ids_differ(llm):
    (output,) = llm.generate([5, 6, 7], GREEDY, use_tqdm=False)
    assert output.prompt_token_ids == [5, 6, 7]
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert len({output.request_id for output in outputs}) == len(PROMPTS)
    assert llm.generate([], GREEDY, use_tqdm=False) == []


def test_options_per_prompt_and_a_bar_of_ones_own(llm):
    bars = []

    def bar(**options):
        bars.append(tqdm.tqdm(**options))
        return bars[-1]

    outputs = llm.generate(PROMPTS[:3], GREEDY, use_tqdm=bar, priority=[0, 0, 0])
    assert [output.prompt for output in outputs] == PROMPTS[:3]
    assert [bar.n for bar in bars] == [3]
    with pytest.raises(ValueError, match="expected 3 priority, got 2"):
        llm.generate(PROMPTS[:3], GREEDY, use_tqdm=False, priority=[0, 0])


def test_prompts_and_outputs_larger_than_what_a_pipe_holds(llm):
    padding = "x" * 200_000
    conversations = [
        [{"role": "user", "content": f"Emma was {n}", "name": padding}] for n in range(8)
    ]
    params = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True, logprobs=20)
    outputs = llm.chat(conversations, params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [400] * 8


@pytest.mark.parametrize("name", ["data_parallel_size", "max_in_flight"])
def test_sizes_below_one_are_errors(demo_model, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        LLM(str(demo_model), **{name: 0})


def test_rank_that_can_not_start_ends_the_others_at_once(demo_model):
    before = set(rank_processes())
    timer = threading.Timer(3.0, lambda: set(rank_processes()).difference(before).pop().kill())
    timer.start()
    start = time.monotonic()
    with pytest.raises(RankDied, match=r"dwdp rank \d could not start: its process ended"):
        LLM(str(demo_model), data_parallel_size=2, enforce_eager=True, max_model_len=512)
    assert time.monotonic() - start < 60
    assert set(rank_processes()) == before


def test_dead_rank_costs_a_retry_and_the_last_one_an_error(llm, caplog):
    expected = [output.outputs[0].text for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]
    logging.getLogger("vllm").propagate = True
    first, last = sorted(rank_processes(), key=lambda process: process.name)
    family = psutil.Process(first.pid).children(recursive=True)
    worker = next(process for process in family if "Worker" in process.name())
    with killing(worker):
        outputs = llm.generate(PROMPTS * 8, GREEDY, use_tqdm=False)
    assert [output.outputs[0].text for output in outputs] == expected * 8
    assert "dwdp rank 0 ended" in caplog.text and "tried once more" in caplog.text
    assert [stats["rank"] for stats in llm.dwdp_stats()] == [1]
    of_last = psutil.Process(last.pid).children(recursive=True)
    next(process for process in of_last if "EngineCore" in process.name()).kill()
    with pytest.raises(RankDied, match="no dwdp rank is left"):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert "EngineDeadError" in caplog.text
    assert llm.dwdp_stats() == []
    assert psutil.wait_procs(family + of_last, timeout=10)[1] == []


@contextlib.contextmanager
def killing(process, after_s=0.3):
    """SIGKILL the process a little later, in the middle of the work."""
    timer = threading.Timer(after_s, process.kill)
    timer.start()
    yield
    assert not timer.is_alive(), "the work ended before the kill"
