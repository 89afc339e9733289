# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A router, a decode server or a prefill rank is killed: what was in flight there is lost.

Each of the prefill ranks has a front-end of its own. All tests share the servers and kill different
ones; together they took six minutes on two cores that other jobs used too.
"""

import contextlib
import http.client
import json
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import pytest
from disaggregated import alone, ask, decode, deployment, prefill, router, through
from forms import post

from vllm_dwdp.bench.ports import free_port

pytestmark = pytest.mark.slow
PROMPT = f"Emma {'and it came to pass ' * 40}"
NUM_STREAMED = 150
BOUND_S = 60
"""Within so many seconds a client must know that its request is lost."""


@pytest.fixture(scope="module")
def deployed(demo_model, tmp_path_factory):
    """Two ranks with servers of their own and two decode servers; some may have been killed."""
    for name in ("nixl", "vllm_router"):
        pytest.importorskip(name, reason="pip install nixl vllm-router")
    logs = tmp_path_factory.mktemp("logs")
    with deployment(demo_model, logs, "external", "NixlPullConnector") as made:
        yield made


@pytest.fixture(scope="module")
def expected(deployed):
    """The text of a stock server for PROMPT."""
    return alone(deployed.decode[0], PROMPT)


def open_stream(server):
    """Start a streamed completion; returns its response once the first token is there."""
    body = {"prompt": PROMPT, "max_tokens": NUM_STREAMED, "temperature": 0}
    answer = post(server, "/v1/completions", {**body, "ignore_eos": True, "stream": True})
    assert answer.readline().startswith(b"data: {")
    return answer


def is_complete(answer):
    """Whether the rest of a stream comes, up to its finish reason."""
    chunk = {}
    with contextlib.suppress(OSError, http.client.HTTPException):
        for line in answer:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[len(b"data: ") :])
    return "choices" in chunk and chunk["choices"][0]["finish_reason"] == "length"


def kill(server):
    """Kill a server and all processes that it started, as the end of its machine would."""
    for process in server.family():
        process.kill()
    server.process.wait()


def error_of(call, *arguments):
    """The status, if there is one, and the text of the error with which a call ends in time."""
    began = time.monotonic()
    with pytest.raises(OSError) as caught:
        call(*arguments)
    assert time.monotonic() - began < BOUND_S
    if isinstance(caught.value, urllib.error.HTTPError):
        return caught.value.code, caught.value.read().decode()
    return None, str(caught.value)


def test_killed_router_costs_its_streams_only(deployed, expected, tmp_path):
    rank, server = deployed.ranks[0], deployed.decode[0]
    port = free_port(2)
    with router([rank], [server], tmp_path / "router", port) as first:
        stream = open_stream(first)
        first.process.kill()
        assert not is_complete(stream)
        assert through(rank, server, PROMPT) == expected
    with router([rank], [server], tmp_path / "again", port) as second:
        assert alone(second, PROMPT) == expected


def test_killed_decode_server_costs_its_streams_only(deployed, expected, tmp_path):
    rank, (kept, killed) = deployed.ranks[0], deployed.decode
    with router([rank], [kept, killed], tmp_path / "router", free_port(2)) as front:
        with ThreadPoolExecutor(max_workers=2) as pool:
            streams = list(pool.map(open_stream, [front] * 2))
            kill(killed)
            assert sorted(pool.map(is_complete, streams)) == [False, True]
        answers = [outcome(front) for _ in range(2)]
    lost = [answer for answer in answers if answer != expected]
    assert len(lost) < len(answers), "the other decode server answers"
    assert all(status == 500 and killed.url in text for status, text in lost)
    assert through(rank, kept, PROMPT) == expected


def outcome(front):
    """The text that comes through the router, or the status and text of its error."""
    try:
        return alone(front, PROMPT)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_killed_prefill_rank_costs_what_it_had_not_handed_over(deployed, expected):
    (kept, killed), server = deployed.ranks, deployed.decode[0]
    assert through(killed, server, PROMPT) == expected
    params = prefill(killed, PROMPT, "handed-over-to-nobody")
    killed.server.pause()
    with ThreadPoolExecutor(max_workers=1) as pool:
        under_way = pool.submit(error_of, ask, killed.server, PROMPT)
        time.sleep(1)
        kill(killed.server)
        assert under_way.result()[0] is None, "the connection must break, without an answer"
    assert error_of(decode, server, PROMPT, params, "handed-over-to-nobody")[0] == 500
    assert through(kept, server, PROMPT) == expected
