# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Prompts wait for a step of enough tokens, no longer than they may, and without using a core."""

import json
import queue
import re
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from forms import DWDP, assert_all_end, post
from support.server import Server
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.request import RequestStatus

from vllm_dwdp.config import ConfigError, DwdpConfig
from vllm_dwdp.engine.admission.gate import AdmissionGate, min_tokens_of_step
from vllm_dwdp.engine.admission.scheduler import admitting

pytestmark = pytest.mark.whole

MIN_TOKENS, MAX_WAIT_S = 100, 8.0
PROMPT = "and it came to pass " * 12
"""More than half of MIN_TOKENS, and less than all."""


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_gate_opens_for_enough_tokens_or_after_the_longest_wait():
    clock = Clock()
    gate = AdmissionGate(100, 2.0, clock=clock)
    assert gate.held_s(0) == 0 == gate.held_s(100)
    assert gate.held_s(99) == 2.0
    clock.now = 1.5
    assert gate.held_s(50) == 0.5, "the time counts from the first prompt that was held"
    assert gate.held_s(120) == 0
    clock.now = 9.0
    assert gate.held_s(50) == 2.0, "enough tokens have come in between"
    clock.now = 11.0
    assert gate.held_s(50) == 0 == gate.held_s(50), "until a step starts"
    gate.open()
    assert gate.held_s(50) == 2.0


def test_auto_takes_more_than_break_even_and_holds_nothing_without_prefetch():
    auto = DwdpConfig(min_tokens_per_step="auto")
    assert min_tokens_of_step(auto, 1000) == 1200
    assert min_tokens_of_step(auto, None) is None
    assert min_tokens_of_step(DwdpConfig(min_tokens_per_step=7), None) == 7


def request(num_tokens, *, computed=0, max_tokens=1, status=RequestStatus.WAITING):
    return SimpleNamespace(
        num_tokens=num_tokens,
        num_prompt_tokens=num_tokens,
        num_computed_tokens=computed,
        max_tokens=max_tokens,
        status=status,
    )


class Engine(EngineCoreProc):
    """Stands for vLLM's engine: has a queue of messages, and runs unless it is told to end."""

    def __init__(self, *, is_ending=False):
        self.input_queue = queue.Queue()
        self.is_running = lambda: not is_ending


class StandIn(Scheduler):
    """Stands for vLLM's scheduler: keeps lists of requests, and says whether it may start some."""

    def __init__(self, *, waiting=(), running=(), paused=PauseState.UNPAUSED, max_num_seqs=8):
        self.engine = Engine()
        self.requests = {}
        self.scheduler_config = SimpleNamespace(
            max_num_batched_tokens=128, max_num_seqs=max_num_seqs
        )
        self.waiting, self.running = list(waiting), list(running)
        self._pause_state = paused

    @property
    def pause_state(self):
        return self._pause_state

    def has_requests(self):
        may_start = self._pause_state is PauseState.UNPAUSED
        return bool(self.running or (may_start and self.waiting))

    def schedule(self, throttle_prefills=False):
        return self._pause_state is PauseState.UNPAUSED


def make(max_wait_ms=5000, **state):
    config = DwdpConfig(min_tokens_per_step=MIN_TOKENS, max_wait_ms=max_wait_ms)
    return admitting(StandIn, config, MIN_TOKENS)(**state)


@pytest.mark.parametrize(
    ("state", "is_held"),
    [
        ({"waiting": [request(60)]}, True),
        ({"waiting": [request(60), request(60)]}, False),
        ({"waiting": [request(60), request(60, computed=50)]}, True),
        ({"waiting": [request(1)] * 8, "max_num_seqs": 8}, False),
        ({"waiting": [request(60)], "running": [request(9, computed=9)]}, True),
        ({"waiting": [request(60)], "running": [request(9, computed=4)]}, False),
        ({"waiting": [request(60)], "running": [request(9, computed=9, max_tokens=2)]}, False),
        ({"waiting": [request(60, status=RequestStatus.WAITING_FOR_REMOTE_KVS)]}, False),
    ],
)
def test_prompts_are_held_only_while_nothing_runs(state, is_held):
    scheduler = make(**state)
    assert scheduler.has_requests() is (bool(scheduler.running) or not is_held)
    assert scheduler.schedule(True) is not is_held
    assert scheduler.pause_state is PauseState.UNPAUSED


def test_no_step_is_awaited_that_vllm_would_not_make():
    config = DwdpConfig(min_tokens_per_step=10_000)
    scheduler = admitting(StandIn, config, 10_000)(waiting=[request(64), request(64)])
    assert scheduler.has_requests(), "a step has at most 128 tokens"


def test_alarm_wakes_the_engine_when_prompts_have_waited_enough():
    scheduler = make(max_wait_ms=100, waiting=[request(60)])
    assert not scheduler.has_requests() and not scheduler.has_requests()
    assert scheduler.engine.input_queue.get(timeout=5) == (EngineCoreRequestType.WAKEUP, None)
    assert scheduler.has_requests() and scheduler.schedule()
    assert not scheduler.has_requests(), "what the step didn't take waits anew"
    assert scheduler.engine.input_queue.get(timeout=5)
    assert scheduler.engine.input_queue.empty(), "one alarm at a time"


def test_alarm_that_rings_too_early_is_set_again():
    """It was set for prompts that have started since. The engine looks while the alarm rings."""
    scheduler = make(max_wait_ms=400, waiting=[request(60)])
    messages, seen = queue.Queue(), []

    def put(message):
        seen.append(scheduler.has_requests())
        messages.put(message)

    scheduler.engine.input_queue = SimpleNamespace(put=put)
    assert not scheduler.has_requests()
    time.sleep(0.2)
    scheduler._gate.open()
    assert messages.get(timeout=5) and messages.get(timeout=5)
    assert seen == [False, True]


def test_class_that_is_no_scheduler_of_vllms_is_refused():
    with pytest.raises(ConfigError, match="derived from vLLM's Scheduler, got Clock"):
        admitting(Clock, DwdpConfig(min_tokens_per_step=1), 1)


def test_prompts_are_not_held_beside_one_that_loads():
    loading = request(60, status=RequestStatus.WAITING_FOR_REMOTE_KVS)
    scheduler = make(waiting=[request(60)])
    scheduler.requests = {"loading": loading}
    assert scheduler.has_requests() and scheduler.schedule()


def test_engine_that_ends_or_is_paused_or_has_no_queue_holds_nothing():
    scheduler = make(waiting=[request(60)])
    scheduler.engine = Engine(is_ending=True)
    assert scheduler.has_requests() and scheduler.schedule()
    scheduler.engine = None
    assert scheduler.has_requests() and scheduler.schedule()
    paused = make(waiting=[request(60)], paused=PauseState.PAUSED_ALL)
    assert not paused.schedule()
    assert paused.pause_state is PauseState.PAUSED_ALL


@pytest.fixture(scope="module")
def server(demo_model, tmp_path_factory):
    options = {"min_tokens_per_step": MIN_TOKENS, "max_wait_ms": MAX_WAIT_S * 1e3}
    made = Server(
        demo_model,
        *(*DWDP, "--no-enable-prefix-caching", "--data-parallel-size", "2"),
        *("--additional-config", json.dumps({"dwdp": options})),
        log=tmp_path_factory.mktemp("admission") / "log",
    )
    try:
        made.wait_until_ready()
        yield made
    finally:
        assert_all_end([made])


def ask_rank_0(server, max_tokens=1, delay_s=0.0):
    """Send rank 0 the prompt after a delay; returns the seconds that the answer took."""
    time.sleep(delay_s)
    start = time.monotonic()
    body = {"prompt": PROMPT, "max_tokens": max_tokens, "ignore_eos": True}
    with post(server, "/v1/completions", body, headers={"X-data-parallel-rank": "0"}):
        return time.monotonic() - start


def test_lone_prompt_waits_as_long_as_it_may_and_uses_no_core(server):
    cores = [p for p in server.family() if "EngineCore" in p.name() or "Worker" in p.name()]
    assert len(cores) == 4, "two ranks, an engine and a worker each"
    before = sum(sum(p.cpu_times()[:2]) for p in cores)
    seconds = ask_rank_0(server)
    used = sum(sum(p.cpu_times()[:2]) for p in cores) - before
    assert MAX_WAIT_S <= seconds < MAX_WAIT_S + 5
    assert used < 0.2 * MAX_WAIT_S


def test_prompts_start_together_once_they_fill_a_step(server):
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask_rank_0, server)
        second = pool.submit(ask_rank_0, server, delay_s=2)
        assert second.result() < MAX_WAIT_S - 3 and first.result() < MAX_WAIT_S


def is_running_one(server):
    _, text = server.call("GET", "/metrics")
    return re.search(r'^vllm:num_requests_running\{engine="0".*\} 1\.0$', text, re.M)


def test_prompt_beside_a_decoding_one_starts_at_once(server):
    with ThreadPoolExecutor(1) as pool:
        decoding = pool.submit(ask_rank_0, server, max_tokens=440)
        while not is_running_one(server):
            assert not decoding.done()
            time.sleep(0.05)
        assert ask_rank_0(server) < MAX_WAIT_S
        assert not decoding.done()
