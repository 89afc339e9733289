# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A start on Ray nodes that fails leaves no actor behind, and no rank is started in vain.

Objects of this process stand for the actors. test_ray_llm.py has a cluster.
"""

from types import SimpleNamespace

import pytest

from vllm_dwdp.engine.setup import ray_cluster
from vllm_dwdp.engine.setup.ray_nodes import RayNode
from vllm_dwdp.offline import ray_ranks
from vllm_dwdp.offline.errors import RankDied
from vllm_dwdp.offline.ray_ranks import RayRanks

ray = pytest.importorskip("ray", reason="pip install ray")
from ray.exceptions import ActorDiedError  # noqa: E402


class Actor:
    """An actor that starts its rank, unless it is the one with the number `dies`."""

    def __init__(self, number, dies):
        self.number = number
        self._dies = dies
        for name, answer in (("reserve_port", 1234), ("gpus", [])):
            setattr(self, name, SimpleNamespace(remote=lambda answer=answer: lambda: answer))
        self.start = SimpleNamespace(remote=lambda *_: self._start)

    def _start(self):
        if self.number == self._dies:
            raise ActorDiedError


@pytest.fixture
def killed(monkeypatch):
    """A cluster of two nodes for two ranks each; returns the numbers of actors that were killed."""
    found = []
    nodes = [RayNode(f"10.0.0.{n}", f"host{n}", {"CPU": 4.0}) for n in (1, 2)]
    monkeypatch.setattr(ray_ranks, "_connect", lambda: None)
    monkeypatch.setattr(ray_ranks, "_nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get", lambda call, timeout: call())
    monkeypatch.setattr(ray, "kill", lambda actor: found.append(actor.number))
    monkeypatch.setattr(ray_cluster.current_platform, "ray_device_key", "")
    for name in (ray_cluster.KEEP_GPUS, ray_cluster.COPIED_TO_ACTORS):
        monkeypatch.setenv(name, "1")
    return found


def start_four(monkeypatch, *, dies=None):
    """The addresses of the ranks that were started."""
    made = lambda nodes, needs: [Actor(number, dies) for number in range(len(nodes))]  # noqa: E731
    monkeypatch.setattr(ray_ranks, "_actors", made)
    started = []
    with RayRanks(4, 2, options=None).starting() as ranks:
        for rank in ranks:
            started.append(rank._address)
    return started


def test_ranks_that_were_taken_keep_their_actors(monkeypatch, killed):
    assert start_four(monkeypatch) == ["10.0.0.1"] * 2 + ["10.0.0.2"] * 2
    assert killed == []


def test_actors_of_ranks_that_nobody_took_are_killed(monkeypatch, killed):
    with pytest.raises(RankDied, match=r"Ray node 10\.0\.0\.2 could not start a rank"):
        start_four(monkeypatch, dies=2)
    assert killed == [2, 3]


def test_a_node_without_a_device_is_refused_before_any_actor_starts(monkeypatch, killed):
    monkeypatch.setattr(ray_ranks, "place_engines_by_ray", lambda: None)
    with pytest.raises(ValueError, match="expected a GPU on the node of this program"):
        start_four(monkeypatch)
    assert killed == []
