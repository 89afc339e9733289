# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank behind an actor is like a rank here, and one whose actor is gone is one that has ended.

Here the actor is an object of this process, and the rank has no model. test_ray_llm.py has both.
"""

import pickle
import queue
import time
from types import SimpleNamespace

import pytest
from rank_stand_in import StandInRank, prompt_of

from vllm_dwdp.offline.errors import RankDied
from vllm_dwdp.offline.rank_handle import RankHandle
from vllm_dwdp.offline.ray_actor import RankActor
from vllm_dwdp.offline.ray_rank import RayRank

ray = pytest.importorskip("ray", reason="pip install ray")
from ray.exceptions import ActorUnavailableError, GetTimeoutError  # noqa: E402

ADDRESS = "10.0.0.2"
WAIT_S = 60


class Actor:
    """Calls the methods of an object in the caller's thread, as `ray.get` asks for their result."""

    def __init__(self, held):
        self._held = held

    def __getattr__(self, name):
        method = getattr(self._held, name)
        return SimpleNamespace(remote=lambda *args: lambda: method(*args))


class Gone:
    """What is left of an actor whose node is gone."""

    def __getattr__(self, name):
        def fail(*_):
            raise ActorUnavailableError("the node is gone", None)

        return fail


def connect(monkeypatch, job_id):
    """Connect to a cluster, as its job with this id, or leave it ("")."""
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(job_id))
    context = SimpleNamespace(get_job_id=lambda: job_id)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)


@pytest.fixture(autouse=True)
def connected(monkeypatch):
    """Ray as far as a RayRank asks it; returns the actors that were killed."""
    killed = []
    connect(monkeypatch, "01")
    monkeypatch.setattr(ray, "get", lambda call, timeout: call())
    monkeypatch.setattr(ray, "kill", killed.append)
    return killed


@pytest.fixture
def behind_an_actor():
    """A rank without a model, whose process an actor holds; it finishes prompts at once."""
    rank = StandInRank(lambda prompt: prompt["prompt_token_ids"], make_rank=hold)
    yield rank
    rank.end()


def hold(child):
    actor = RankActor()
    actor._child = child
    return RayRank(Actor(actor), ADDRESS)


def test_prompts_and_outputs_pass_through_an_actor(behind_an_actor):
    found = behind_an_actor.answers("run", prompt_of("ab"), prompt_of("x" * 100_000))
    assert {i: (is_error, len(out.prompt)) for i, (is_error, out) in found.items()} == {
        0: (False, 2),
        1: (False, 100_000),
    }


def test_end_of_the_process_ends_messages_and_gives_the_actor_back(connected):
    rank = StandInRank(lambda prompt: prompt, make_rank=hold)
    rank.end()
    assert len(connected) == 1
    with pytest.raises(EOFError):
        rank.handle._rank.receive()
    with pytest.raises(OSError):
        rank.handle._rank.send(pickle.dumps(None))


def test_a_node_that_is_gone_is_a_rank_that_has_ended():
    news = queue.SimpleQueue()
    handle = RankHandle(3, RayRank(Actor(Gone()), ADDRESS), news)
    _, (kind, text) = news.get(timeout=WAIT_S)
    assert kind == "ended"
    assert text.startswith(f"its actor on Ray node {ADDRESS} ended: ") and "node is gone" in text
    with pytest.raises(RankDied, match="dwdp rank 3 ended"):
        handle.call("get_metrics")
    handle.ask_to_end()
    handle.join(time.monotonic())
    assert handle.exit_code is None


def test_a_node_that_does_not_answer_keeps_nobody_waiting(monkeypatch):
    def wait(call, timeout):
        raise GetTimeoutError

    monkeypatch.setattr(ray, "get", wait)
    rank = RayRank(Actor(Gone()), ADDRESS)
    rank.end(1.0)
    assert "no answer to 'end' in 6.0 s" in rank.how_ended(has_begun=True)


@pytest.mark.parametrize("job_id", ["", "02"])
def test_after_ray_has_left_nothing_uses_the_actor_again(monkeypatch, connected, job_id):
    """Also not if the program is connected to a cluster once more."""
    rank = RayRank(Actor(Gone()), ADDRESS)
    connect(monkeypatch, job_id)
    with pytest.raises(EOFError):
        rank.receive()
    rank.terminate()
    rank.end(1.0)
    rank.end_family()
    assert connected == []
    assert "this program has left the Ray cluster" in rank.how_ended(has_begun=True)
