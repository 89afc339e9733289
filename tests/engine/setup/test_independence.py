# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Two servers with one rank each: a rank goes on when its peer is stopped or killed."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from forms import server_per_rank

pytestmark = pytest.mark.whole

PROMPT = "It is a truth"


@pytest.fixture
def servers(demo_model, tmp_path):
    with server_per_rank(demo_model, tmp_path, "--max-model-len", "512") as made:
        yield made


def answers(server, count=5):
    """The set of texts of `count` answers, and the seconds that each took."""
    texts, seconds = set(), []
    for _ in range(count):
        start = time.monotonic()
        texts.add(server.complete(PROMPT))
        seconds.append(time.monotonic() - start)
    return texts, seconds


def test_rank_goes_on_at_its_usual_speed_while_its_peer_is_stopped_and_after_it_was_killed(servers):
    """Measurements with a running and with a stopped peer take turns.

    On two cores speed varies more from minute to minute than it would by a stopped peer.
    """
    survivor, peer = servers
    (worker,) = peer.workers()
    usual, stopped = [], []
    expected, _ = answers(survivor)
    for _ in range(4):
        texts, seconds = answers(survivor)
        usual += seconds
        with ThreadPoolExecutor() as pool:
            in_flight = pool.submit(peer.complete, PROMPT, 256)
            time.sleep(0.3)
            worker.suspend()
            texts_then, seconds = answers(survivor)
            assert not in_flight.done()
            worker.resume()
            stopped += seconds
        assert in_flight.result() and texts == texts_then == expected
    worker.kill()
    assert answers(survivor)[0] == expected
    assert len(expected) == 1
    assert statistics.median(stopped) < 1.3 * statistics.median(usual)
