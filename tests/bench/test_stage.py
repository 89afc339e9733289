# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Arms on the machine: which ones run, wait and end, with sleeping processes as servers."""

import contextlib
import sys
import time
from collections import Counter

import psutil
import pytest

from vllm_dwdp.bench.arm import Arm
from vllm_dwdp.bench.client import Served
from vllm_dwdp.bench.disturbance.disturber import Disturber
from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.bench.rounds import Rounds
from vllm_dwdp.bench.server import Server
from vllm_dwdp.bench.stage import InTurns, Together

PARENT = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
def end(*_):
    child.kill()
    sys.exit(0)
signal.signal(signal.SIGINT, end)
print("ready", flush=True)
time.sleep(600)
"""


class SleepingArms:
    """Makes arms of one server each, a process with a child, none of which listens."""

    def __init__(self, folder, *names, failing=()):
        self.recipes = dict.fromkeys(names)
        self.arms = {}
        self._folder = folder
        self._failing = failing

    @contextlib.contextmanager
    def started(self, name):
        if name in self._failing:
            raise BenchError(f"{name} doesn't start.")
        log = self._folder / name
        server = Server(
            [sys.executable, "-c", PARENT], port=1, log=log, environment={}, own_session=True
        )
        self.arms[name] = arm = Arm(name, [server])
        try:
            while "ready" not in server.text():
                time.sleep(0.01)
            yield arm
        finally:
            arm.stop()

    def become(self, **expected):
        """Wait until it is so, by arm, that all its processes are stopped; None: have ended."""
        deadline = time.monotonic() + 20
        while (found := {name: is_stopped(arm) for name, arm in self.arms.items()}) != expected:
            assert time.monotonic() < deadline, f"expected {expected}, got {found}"
            time.sleep(0.01)


def wait_until(is_so):
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline, "it has not become so within 20 s"
        time.sleep(0.01)


def is_stopped(arm):
    found = {p.status() for p in arm.processes() if p.status() != psutil.STATUS_ZOMBIE}
    return found == {psutil.STATUS_STOPPED} if found else None


@pytest.fixture
def make_arms(tmp_path):
    return lambda *names, **options: SleepingArms(tmp_path, *names, **options)


def test_together_all_arms_but_one_are_stopped(make_arms):
    arms = make_arms("a", "b")
    with Together(arms, lambda arm: None) as stage:
        arms.become(a=True, b=True)
        with stage.on("b") as arm:
            assert arm.name == "b" and len(arm.processes()) == 2
            arms.become(a=True, b=False)
        arms.become(a=True, b=True)
    arms.become(a=None, b=None)


def test_an_error_in_a_turn_ends_all_arms(make_arms):
    arms = make_arms("a", "b")
    with (
        pytest.raises(ZeroDivisionError),
        Together(arms, lambda arm: None) as stage,
        stage.on("a"),
    ):
        raise ZeroDivisionError
    arms.become(a=None, b=None)


def test_an_arm_that_does_not_start_or_answer_is_left_out(make_arms):
    arms = make_arms("a", "b", "c", failing=["a"])

    def prepare(arm):
        if arm.name == "b":
            raise BenchError("b doesn't answer.")

    with Together(arms, prepare) as stage:
        assert stage.present == ["c"]
        arms.become(b=None, c=True)
        assert stage.failures == {"a": "a doesn't start.", "b": "b doesn't answer. Log: ready"}


def test_other_errors_at_the_start_end_what_has_started(make_arms):
    arms = make_arms("a", "b")

    def prepare(arm):
        if arm.name == "b":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Together(arms, prepare):
        pass
    arms.become(a=None, b=None)


def test_in_turns_an_arm_lives_as_long_as_its_turn(make_arms):
    arms = make_arms("a", "b", failing=["b"])
    with InTurns(arms, lambda arm: None) as stage:
        with stage.on("a"):
            arms.become(a=False)
        arms.become(a=None)
        with stage.on("b") as arm:
            assert arm is None
        with pytest.raises(ZeroDivisionError), stage.on("a"):
            raise ZeroDivisionError
        arms.become(a=None)


def test_what_a_dead_server_leaves_behind_is_ended(make_arms):
    arms = make_arms("a")
    with arms.started("a") as arm:
        server, child = arm.processes()
        arm.pause()
        server.kill()
        arm.servers[0].process.wait()
        wait_until(lambda: child.status() == psutil.STATUS_STOPPED)
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_first_error_of_a_log_is_the_complaint(make_arms):
    arms = make_arms("a")
    with arms.started("a") as arm:
        (server,) = arm.servers
        lines = ("INFO fine", "pid=1 WARNING x OSError: no matter", "pid=1 ERROR ValueError: bad")
        lines += ("  since it is", "RuntimeError: Engine core failed. See root cause above.")
        server.log.write_text("\n".join(lines))
        assert server.complaint() == "ValueError: bad since it is"
        server.log.write_text("one\ntwo\n")
        assert server.complaint() == "two"
        server.log.write_text("")
        assert server.complaint() == "its log is empty"


class FakeClients:
    """Answers at once; raises BenchError where `fails(number of the call)`."""

    def __init__(self, fails=lambda number: False):
        self.calls = []
        self._fails = fails

    def serve(self, urls, options, *, num_clients, first_seed):
        self.calls.append((num_clients, first_seed))
        if self._fails(len(self.calls) - 1):
            raise BenchError("no answer.")
        return Served(100.0, 0.1, None)


class Heard:
    def __init__(self):
        self.lines = []

    def ready(self, arm):
        self.lines.append(arm)

    def measured(self, one):
        self.lines.append((one.round, one.arm, one.variant))


class Held:
    """A stage without processes."""

    def __init__(self, *names):
        self._arms = {name: Arm(name, []) for name in names}
        self.failures = {}

    @property
    def present(self):
        return [name for name in self._arms if name not in self.failures]

    def on(self, name):
        return contextlib.nullcontext(self._arms[name])

    def fail(self, arm, error):
        self.failures[arm.name] = str(error)


def make_rounds(clients, heard, disturber=None):
    return Rounds(clients, None, num_clients=3, disturber=disturber, reporter=heard, first_seed=7)


def test_every_round_begins_with_another_arm_and_all_get_equal_requests():
    clients, heard = FakeClients(), Heard()
    make_rounds(clients, heard).run(Held("a", "b"), 3)
    assert [(number, arm) for number, arm, _ in heard.lines] == [
        *[(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
    ]
    assert clients.calls == [(3, seed) for seed in (7, 7, 10, 10, 13, 13)]


def test_variants_change_their_order_from_round_to_round():
    heard = Heard()
    make_rounds(FakeClients(), heard, Disturber.of_core(0)).run(Held("a"), 2)
    assert [variant for _, _, variant in heard.lines] == [
        *["undisturbed", "disturbed", "disturbed", "undisturbed"]
    ]


def test_an_arm_that_fails_in_a_round_keeps_earlier_ones():
    heard, stage = Heard(), Held("a", "b")
    rounds = make_rounds(FakeClients(lambda number: number == 3), heard)
    rounds.run(stage, 3)
    assert {arm: len(ones) for arm, ones in rounds.found.of("undisturbed").items()} == {
        "a": 1,
        "b": 3,
    }
    assert stage.failures == {"a": "no answer."}


def test_ctrl_c_ends_the_rounds_and_keeps_what_was_measured():
    class Interrupted(FakeClients):
        def serve(self, urls, options, **given):
            if len(self.calls) == 1:
                raise KeyboardInterrupt
            return super().serve(urls, options, **given)

    rounds = make_rounds(Interrupted(), Heard())
    rounds.run(Held("a", "b"), 3)
    assert [one.arm for one in rounds.found.rounds] == ["a"]
    assert rounds.found.cpu_seconds == {("a", "undisturbed"): Counter()}
