# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp trace` on a real server of two ranks, which prefetch while they answer."""

import json
import subprocess
import sys
import threading

import pytest
from forms import TWO_RANKS, server_in_dev_mode

from vllm_dwdp.trace.server import LACKS
from vllm_dwdp.trace.span import Kind
from vllm_dwdp.trace.trace_file import read_trace

pytestmark = pytest.mark.whole

STEPS = 12
DWDP = {"dwdp": {"fetch": "prefetch"}}
OPTIONS = (*TWO_RANKS, "--additional-config", json.dumps(DWDP))


@pytest.fixture(scope="module")
def server(demo_model, tmp_path_factory):
    with server_in_dev_mode(demo_model, tmp_path_factory.mktemp("server"), *OPTIONS) as made:
        yield made


@pytest.fixture
def busy(server):
    """The server answers requests as long as the test runs."""
    ended = threading.Event()

    def ask():
        while not ended.is_set():
            server.complete("It is a truth universally acknowledged", 16)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    yield
    ended.set()
    for thread in threads:
        thread.join()


def run(*arguments):
    command = [sys.executable, "-m", "vllm_dwdp.cli", "trace", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_trace_of_a_busy_server_has_all_ranks_and_agrees_with_their_counters(
    server, busy, tmp_path
):
    out, page = tmp_path / "trace.json", tmp_path / "page.html"
    ended = run("record", server.url, "--steps", STEPS, "--out", out, "--timeout", 120)
    assert ended.returncode == 0, ended.stderr
    trace = read_trace(out)
    assert [rank.rank for rank in trace.ranks] == [0, 1]
    for rank in trace.ranks:
        assert rank.num_steps == STEPS
        assert rank.modes == {"prefetch": STEPS}
        assert rank.bytes.agrees and rank.waits.agrees, rank
        assert set(rank.copied_bytes) == {f"rank {1 - rank.rank}"}
        assert 0 < rank.hidden_share <= 1
    kinds = {span.kind for span in trace.spans}
    assert kinds >= {Kind.STEP, Kind.KERNEL, Kind.BETWEEN, Kind.COPY}
    assert run("show", out, "--html", page).returncode == 0
    assert "<canvas" in page.read_text()


def test_server_says_what_it_lacks_in_the_words_that_the_command_knows(server):
    status, text = server.call("POST", "/collective_rpc", {"method": "dwdp_trace_of_others"})
    assert status == 500
    assert any(lacks.format("dwdp_trace_of_others") in text for lacks in LACKS)


def test_idle_server_ends_the_command_with_a_sentence_and_goes_on(server, tmp_path):
    ended = run("record", server.url, "--timeout", 1, "--out", tmp_path / "trace.json")
    assert ended.returncode == 3
    assert "no step ran within 1 s" in ended.stderr
    assert server.complete("It is a truth", 4)
