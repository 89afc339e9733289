# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which streams under way finish when a server gets SIGTERM, with `--shutdown-timeout`."""

import contextlib
import json
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from forms import EAGER, TWO_RANKS, assert_all_end, at_port, post, supervisor
from support.server import Server

from vllm_dwdp.bench.ports import free_port

pytestmark = pytest.mark.whole

NUM_STREAMS = 4
NUM_TOKENS = 400


def open_stream(server):
    """Start a streamed completion; returns its response after the first token."""
    body = {"prompt": "It is a truth", "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True}
    answer = post(server, "/v1/completions", body)
    assert b"text" in answer.readline()
    return answer


def rest_of(answer):
    """Read the rest of a stream; returns its finish reason, None if it was cut or had an error."""
    chunk = {}
    with contextlib.suppress(OSError):
        for line in answer:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[len(b"data: ") :])
    return chunk["choices"][0]["finish_reason"] if "choices" in chunk else None


def ends_of_streams(server, ports):
    """The finish reasons of NUM_STREAMS streams that are under way when the server gets SIGTERM."""
    asked = [at_port(server, ports[i % len(ports)]) for i in range(NUM_STREAMS)]
    try:
        for each in asked:
            each.wait_until_ready()
        with ThreadPoolExecutor(max_workers=NUM_STREAMS) as pool:
            streams = list(pool.map(open_stream, asked))
            server.process.send_signal(signal.SIGTERM)
            return list(pool.map(rest_of, streams))
    finally:
        assert_all_end([server])


def test_one_api_server_finishes_all_streams_of_both_ranks(demo_model, tmp_path):
    options = (*TWO_RANKS, "--shutdown-timeout", "60", "--api-server-count", "1")
    server = Server(demo_model, *options, log=tmp_path / "log")
    assert ends_of_streams(server, [server.port]) == ["length"] * NUM_STREAMS


@pytest.mark.slow
def test_supervisor_lets_its_servers_finish_their_streams(demo_model, tmp_path):
    port = free_port(3)
    options = (*TWO_RANKS, *supervisor(port), "--shutdown-timeout", "60")
    server = Server(demo_model, *options, log=tmp_path / "log")
    assert ends_of_streams(server, [port, port + 1]) == ["length"] * NUM_STREAMS


@pytest.mark.slow
@pytest.mark.parametrize("options", [EAGER, TWO_RANKS], ids=["stock", "dwdp"])
def test_several_api_servers_stop_streams_half_way_as_stock_does(demo_model, tmp_path, options):
    options = (*options, "--shutdown-timeout", "20", "--api-server-count", "2")
    server = Server(demo_model, *options, log=tmp_path / "log")
    assert "length" not in ends_of_streams(server, [server.port])
