# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Two servers, one rank each: a peer that stops, or dies, doesn't stop the other."""

import signal
import statistics
import time

import pytest
from server import Server, free_port

PROMPT = "It is a truth"


@pytest.fixture
def servers(demo_model, tmp_path):
    """The two ranks of one job, each behind a front-end of its own."""
    options = ["--data-parallel-size", "2", "--data-parallel-rpc-port", str(free_port())]
    options += ["--max-model-len", "512", "--distributed-executor-backend", "dwdp"]
    made = [
        Server(demo_model, *options, "--data-parallel-rank", str(rank), log=tmp_path / f"{rank}")
        for rank in range(2)
    ]
    try:
        for server in made:
            server.wait_until_ready()
        yield made
    finally:
        for server in made:
            server.stop()


def answers(server, count):
    """Texts and the median of the seconds that they took."""
    texts, seconds = set(), []
    for _ in range(count):
        start = time.monotonic()
        texts.add(server.complete(PROMPT))
        seconds.append(time.monotonic() - start)
    return texts, statistics.median(seconds)


def test_rank_answers_the_same_while_its_peer_is_stopped_and_after_it_was_killed(servers):
    survivor, peer = servers
    texts, usual_s = answers(survivor, 10)
    assert len(texts) == 1
    (worker,) = peer.workers()
    for strike in (signal.SIGSTOP, signal.SIGKILL):
        worker.send_signal(strike)
        after, seconds = answers(survivor, 10)
        assert after == texts
        assert seconds < 1.5 * usual_s
