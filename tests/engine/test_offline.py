# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""vllm_dwdp.LLM beyond parity: order, chat, a notebook's event loop, ranks that die."""

import asyncio
import contextlib
import logging
import multiprocessing
import threading

import leftovers
import psutil
import pytest
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


def test_dead_rank_costs_a_retry_and_is_reported_and_the_last_one_an_error(llm, caplog):
    expected = [output.outputs[0].text for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]
    logging.getLogger("vllm").propagate = True
    first, last = sorted(rank_processes(), key=lambda process: process.name)
    family = psutil.Process(first.pid).children(recursive=True)
    worker = next(process for process in family if "Worker" in process.name())
    with killing(worker):
        outputs = llm.generate(PROMPTS * 8, GREEDY, use_tqdm=False)
    assert [output.outputs[0].text for output in outputs] == expected * 8
    assert "dwdp rank 0 ended" in caplog.text and "tried once more" in caplog.text
    family += psutil.Process(last.pid).children(recursive=True)
    with killing(last), pytest.raises(RankDied, match="no dwdp rank is left"):
        llm.generate(PROMPTS * 8, GREEDY, use_tqdm=False)
    assert psutil.wait_procs(family, timeout=10)[1] == []


@contextlib.contextmanager
def killing(process, after_s=0.3):
    """SIGKILL the process a little later, in the middle of the work."""
    timer = threading.Timer(after_s, process.kill)
    timer.start()
    yield
    assert not timer.is_alive(), "the work ended before the kill"
