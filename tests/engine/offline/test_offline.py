# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""vllm_dwdp.LLM beyond parity: order, chat, threads, a notebook's event loop, ranks that die."""

import asyncio
import contextlib
import logging
import multiprocessing
import sys
import threading
import time

import numpy
import psutil
import pytest
import tqdm
from support import leftovers
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.sampling_params import BeamSearchParams

from vllm_dwdp import LLM, RankDied
from vllm_dwdp.trace.trace_file import Trace

pytestmark = pytest.mark.whole

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
        distributed_executor_backend="dwdp",
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


def test_a_trace_has_the_steps_of_every_rank(llm):
    with pytest.raises(Exception, match="got none; start one first"):
        llm.dwdp_trace()
    llm.dwdp_trace_start(5)
    llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    trace = Trace.of(llm.dwdp_trace())
    assert [(rank.rank, rank.num_steps) for rank in trace.ranks] == [(0, 5), (1, 5)]
    assert all(rank.bytes.agrees and rank.waits.agrees for rank in trace.ranks)
    assert all(rank.kernel_s > 0 for rank in trace.ranks)


def test_chat_takes_one_conversation_or_several(llm):
    conversation = [{"role": "user", "content": "In the beginning"}]
    (alone,) = llm.chat(conversation, GREEDY, use_tqdm=False)
    both = llm.chat([conversation, conversation], GREEDY, use_tqdm=False)
    assert [output.outputs[0].text for output in both] == [alone.outputs[0].text] * 2


def test_enqueued_prompts_run_when_they_are_waited_for(llm):
    before = num_forwards(llm)
    ids = llm.enqueue(PROMPTS[:3], GREEDY)
    ids += llm.enqueue_chat([{"role": "user", "content": "In the beginning"}], GREEDY)
    assert num_forwards(llm) == before and len(set(ids)) == 4
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in outputs] == ids
    expected = llm.generate(PROMPTS[:3], GREEDY, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in outputs[:3]] == [
        o.outputs[0].token_ids for o in expected
    ]
    assert llm.wait_for_completion(use_tqdm=False) == []


def test_a_beam_of_one_is_greedy_and_a_wider_one_is_likelier(llm):
    prompts = [{"prompt": prompt} for prompt in PROMPTS]
    one, four = (
        llm.beam_search(prompts, BeamSearchParams(beam_width=width, max_tokens=8, ignore_eos=True))
        for width in (1, 4)
    )
    greedy = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    for narrow, wide, expected in zip(one, four, greedy, strict=True):
        num_prompt = len(expected.prompt_token_ids)
        assert narrow.sequences[0].tokens[num_prompt:] == list(expected.outputs[0].token_ids)
        assert wide.sequences[0].cum_logprob >= narrow.sequences[0].cum_logprob - 1e-4


def test_calls_of_every_rank_come_by_rank(llm):
    owned = [stats["experts_owned"] for stats in llm.collective_rpc("dwdp_stats")]
    assert owned == [[0, 8], [8, 16]]
    assert llm.reset_prefix_cache() is True
    llm.reset_mm_cache()
    assert llm.get_world_size() == 2 and llm.get_world_size(include_dp=False) == 1
    assert llm.get_tokenizer().encode("Emma was") == llm.get_tokenizer()("Emma was").input_ids
    assert isinstance(llm.get_default_sampling_params(), SamplingParams)
    with pytest.raises(Exception, match="no_such_method"):
        llm.collective_rpc("no_such_method")
    with pytest.raises(NotImplementedError, match="a rank can't sleep"):
        llm.sleep()


def test_works_inside_a_running_event_loop(llm):
    async def cell():
        return llm.generate("Emma was", GREEDY, use_tqdm=False)

    (output,) = asyncio.run(cell())
    assert output.prompt == "Emma was"


def num_forwards(llm):
    return sum(sum(stats["forwards"]) for stats in llm.dwdp_stats())


def test_refused_prompt_is_vllms_exception_before_any_prompt_runs(llm):
    before = num_forwards(llm)
    with pytest.raises(VLLMValidationError, match="maximum context length is 512") as caught:
        llm.generate(["and " * 2000, *PROMPTS * 12], GREEDY, use_tqdm=False)
    assert caught.value.__notes__ == ["This is prompt 0 of 193; none was run."]
    assert num_forwards(llm) == before
    assert len(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == len(PROMPTS)


@pytest.mark.parametrize(
    ("prompts", "options", "error"),
    [
        ((prompt for prompt in PROMPTS), {}, TypeError),
        ((5, 6, 7), {}, TypeError),
        (numpy.array([5, 6, 7]), {}, TypeError),
        ([b"Emma was"], {}, TypeError),
        ([{"text": "Emma was"}], {}, TypeError),
        (["Emma was", lambda: 0], {}, TypeError),
        (None, {}, TypeError),
        (["Emma was", ""], {}, VLLMValidationError),
        (["Emma was"], {"sampling_params": "greedy"}, VLLMValidationError),
        (["Emma was"], {"sampling_params": [GREEDY, GREEDY]}, VLLMValidationError),
        (["Emma was"], {"sampling_params": [None]}, TypeError),
        (["Emma was"], {"sampling_params": SamplingParams(logprobs=10**6)}, VLLMValidationError),
        (["Emma was"], {"lora_request": LoRARequest("a", 1, "/a")}, VLLMValidationError),
        (["Emma was"], {"temperature": 0}, TypeError),
        ([{"prompt_token_ids": range(5, 8)}], {}, TypeError),
        ([True, False], {}, VLLMValidationError),
        (["Emma was"], {"sampling_params": {0: GREEDY}.values()}, TypeError),
        (["Emma was"], {"priority": numpy.array([0])}, VLLMValidationError),
        (["Emma was"], {"sampling_params": SamplingParams(seed=numpy.int64(5))}, TypeError),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_vllm_refuses_is_refused_with_its_exception(llm, prompts, options, error):
    before = num_forwards(llm)
    with pytest.raises(error) as caught:
        llm.generate(prompts, use_tqdm=False, **{"sampling_params": GREEDY, **options})
    assert type(caught.value) is error
    assert num_forwards(llm) == before


class Column:
    """A table's column: `[]` looks for a row's label, iteration goes from the first row down."""

    def __init__(self, labels, values):
        self._rows = dict(zip(labels, values, strict=True))

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, label):
        return self._rows[label]

    def __iter__(self):
        return iter(self._rows.values())


@pytest.mark.parametrize(
    "gather",
    [
        lambda items: Column([2, 0, 3, 1], items),
        lambda items: Column([7, 9, 11, 40], items),
        lambda items: dict(enumerate(items)).values(),
        tuple,
    ],
    ids=["shuffled column", "filtered column", "values", "tuple"],
)
def test_prompts_and_conversations_are_iterated_over_as_vllm_does(llm, gather):
    texts = PROMPTS[:4]
    outputs = llm.generate(gather(texts), GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == texts
    conversations = [[{"role": "user", "content": text}] for text in texts]
    expected = llm.chat(conversations, GREEDY, use_tqdm=False)
    outputs = llm.chat(gather(conversations), GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == [output.prompt for output in expected]
    assert len({output.prompt for output in outputs}) == len(texts)


def test_prompts_of_all_kinds_with_parameters_of_their_own(llm):
    prompts = [numpy.str_("Emma was"), [5, 6], {"prompt": "In the"}, {"prompt_token_ids": [7, 8]}]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (1, 2, 3, 4)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2, 3, 4]
    assert [output.prompt for output in outputs] == ["Emma was", None, "In the", None]
    assert [outputs[i].prompt_token_ids for i in (1, 3)] == [[5, 6], [7, 8]]


def test_calls_of_several_threads_get_their_own_answers(llm):
    answers = {}

    def call(name):
        prompts = [f"{name} {prompt}" for prompt in PROMPTS]
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
        answers[name] = [output.prompt for output in outputs] == prompts

    threads = [threading.Thread(target=call, args=(name,), daemon=True) for name in "abc"]
    for thread in threads:
        thread.start()
    assert len(llm.dwdp_stats()) == 2
    for thread in threads:
        thread.join(60)
    assert answers == dict.fromkeys("abc", True)


def test_call_that_was_broken_off_leaves_no_answer_for_the_next(llm):
    with pytest.raises(Exception, match="pickle"):
        llm.generate([PROMPTS[0], threading.Lock()], GREEDY)
    stats = llm.dwdp_stats()
    (output,) = llm.generate(["And it came to pass"], GREEDY)
    assert output.prompt == "And it came to pass"
    assert len(stats) == 2


def test_prompt_of_a_class_that_ranks_can_not_import_is_an_error(llm, monkeypatch):
    late = type("Late", (str,), {"__module__": __name__})
    monkeypatch.setattr(sys.modules[__name__], "Late", late, raising=False)
    with pytest.raises(TypeError, match="Can't get attribute 'Late'") as caught:
        llm.generate(["Emma was", late("Emma was")], GREEDY, use_tqdm=False)
    assert caught.value.__notes__ == ["This is prompt 1 of 2; none was run."]
    assert len(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == len(PROMPTS)


def call_in_a_fork(llm):
    with pytest.raises(RuntimeError, match="works only in the process that built it"):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)


def test_fork_during_a_call_of_another_thread_can_not_use_it_and_is_told(llm):
    thread = threading.Thread(target=llm.generate, args=(PROMPTS * 4, GREEDY), daemon=True)
    before = num_forwards(llm)
    thread.start()
    while num_forwards(llm) == before:
        assert thread.is_alive()
    child = multiprocessing.get_context("fork").Process(target=call_in_a_fork, args=(llm,))
    child.start()
    assert thread.is_alive(), "the call ended before the fork"
    child.join(10)
    with contextlib.suppress(ProcessLookupError):
        child.kill()
    assert child.exitcode == 0
    thread.join(60)
    assert not thread.is_alive()


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
    with pytest.raises(VLLMValidationError, match=r"prompts \(3\) and priority \(2\) must be"):
        llm.generate(PROMPTS[:3], GREEDY, use_tqdm=False, priority=[0, 0])


def test_prompts_and_outputs_larger_than_what_a_pipe_holds(llm):
    padding = "x" * 200_000
    conversations = [
        [{"role": "user", "content": f"Emma was {n}", "name": padding}] for n in range(8)
    ]
    params = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True, logprobs=20)
    outputs = llm.chat(conversations, params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [400] * 8


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"distributed_executor_backend": "mp"}, ValueError, "runs its ranks on the .* 'dwdp'"),
        ({"data_parallel_rank": 1}, ValueError, "numbers and places its ranks itself"),
        (
            {"data_parallel_backend": "ray", "additional_config": {"dwdp": {"dwdp_size": 3}}},
            ValueError,
            "dwdp_size must divide the data-parallel size 2, got 3",
        ),
        (
            {
                "data_parallel_backend": "ray",
                "additional_config": {"dwdp": {"rendezvous": "127.0.0.1:29551"}},
            },
            ValueError,
            "each Ray node meet on its loopback address, got dwdp.rendezvous='127.0.0.1:29551'",
        ),
        ({"max_model_length": 512}, TypeError, "unexpected keyword argument 'max_model_length'"),
        ({"hf_overrides": threading.Lock()}, TypeError, "pickle"),
    ],
)
def test_option_that_can_not_work_is_refused_before_a_process(demo_model, options, error, sentence):
    before = rank_processes()
    with pytest.raises(error, match=sentence):
        LLM(str(demo_model), data_parallel_size=2, **options)
    assert rank_processes() == before


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
    assert "dwdp rank 0 ended (exit code 1)" in caplog.text and "tried once more" in caplog.text
    assert [stats["rank"] for stats in llm.dwdp_stats()] == [1]
    of_last = psutil.Process(last.pid).children(recursive=True)
    next(process for process in of_last if "EngineCore" in process.name()).kill()
    for call in (llm.generate, llm.generate, llm.chat):
        with pytest.raises(RankDied, match="no dwdp rank is left"):
            call([[{"role": "user", "content": "Emma"}]] if call == llm.chat else PROMPTS, GREEDY)
    assert "EngineDeadError" in caplog.text
    assert llm.dwdp_stats() == []
    llm.shutdown()
    for call in (llm.dwdp_stats, lambda: llm.generate(PROMPTS), lambda: llm.generate([])):
        with pytest.raises(RuntimeError, match=r"this vllm_dwdp\.LLM was shut down"):
            call()
    assert psutil.wait_procs(family + of_last, timeout=10)[1] == []


@contextlib.contextmanager
def killing(process, after_s=0.3):
    """SIGKILL the process a little later, in the middle of the work."""
    timer = threading.Timer(after_s, process.kill)
    timer.start()
    yield
    assert not timer.is_alive(), "the work ended before the kill"
