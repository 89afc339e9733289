# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp trace`: what it writes, and the sentences and exit codes with which it ends."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.host_layers import HostLayers

from vllm_dwdp.trace.trace_file import read_trace

UNKNOWN = (
    "Call to collective_rpc method failed: Worker failed with error ''CPUWorker' object has no "
    "attribute '{}'', please check the stack trace above for the root cause"
)
"""How vLLM answers a call of a method that its worker lacks."""


class FakeServer:
    """An HTTP server that answers as vLLM does, for a rank whose steps run by themselves.

    kind: "dwdp", "stock" (an engine without dwdp), "no dev mode" or "idle".
    """

    def __init__(self, kind):
        self.kind = kind
        self.layers = HostLayers()
        self.rank = 0
        serving = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, answer = serving.answer(self.path, body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def answer(self, path, body):
        assert path == "/collective_rpc"
        if self.kind == "no dev mode":
            return 404, {"detail": "Not Found"}
        if self.kind == "stock":
            return 500, {"error": {"message": UNKNOWN.format(body["method"])}}
        try:
            return 200, {"results": [self._call(body["method"], *body["args"])]}
        except ValueError as error:
            return 500, {"error": {"message": str(error)}}

    def _call(self, method, *args):
        if method == "dwdp_trace_start":
            self.layers.tracing.start(*args)
        elif method == "dwdp_trace_steps":
            if self.kind == "dwdp":
                self.layers.step()
            return [self.layers.tracing.num_steps]
        else:
            return self.layers.as_of_rank(self.layers.tracing.take(), self.rank)

    def close(self):
        self._http.shutdown()


@pytest.fixture
def make_server():
    made = []

    def make(kind):
        made.append(FakeServer(kind))
        return made[-1]

    yield make
    for server in made:
        server.close()


def run(*arguments):
    """Run the command; returns its exit code, output and error output."""
    command = [sys.executable, "-m", "vllm_dwdp.cli", "trace", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return ended.returncode, ended.stdout, ended.stderr


def test_steps_are_recorded_and_shown(make_server, tmp_path):
    servers = [make_server("dwdp") for _ in range(2)]
    servers[1].rank = 1
    out, page = tmp_path / "trace.json", tmp_path / "page.html"
    code, _, errors = run("record", *(s.url for s in servers), "--steps", 3, "--out", out)
    assert code == 0, errors
    assert "Totals" in errors and f"wrote {out}" in errors.replace("\n", "")
    trace = read_trace(out)
    assert [(rank.rank, rank.num_steps) for rank in trace.ranks] == [(0, 3), (1, 3)]
    code, shown, errors = run("show", out, "--html", page, "--json")
    assert code == 0, errors
    totals = json.loads(shown)
    assert [rank["num_steps"] for rank in totals["ranks"]] == [3, 3]
    assert totals["notes"] == []
    assert "<html" in page.read_text()
    code, shown, _ = run("show", out)
    assert code == 0 and "Layers that waited longest" in shown


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("stock", "doesn't run dwdp; start it with --distributed-executor-backend dwdp."),
        ("no dev mode", "start the server with VLLM_SERVER_DEV_MODE=1 in its environment."),
        ("idle", "no step ran within 1 s; send requests while the trace is recorded."),
    ],
)
def test_server_that_cannot_record_ends_the_command_with_a_sentence(make_server, kind, sentence):
    code, _, errors = run("record", make_server(kind).url, "--timeout", 1)
    assert code == 3
    assert sentence in errors.replace("\n", " ")
    assert "Traceback" not in errors


def test_address_without_a_server_ends_the_command_with_a_sentence():
    code, _, errors = run("record", "http://127.0.0.1:1")
    assert code == 3 and "no vLLM server answers at http://127.0.0.1:1" in errors
    code, _, errors = run("record", "localhost:8000")
    assert code == 3 and "no vLLM server answers at localhost:8000" in errors


def test_number_of_steps_that_a_rank_refuses_is_told(make_server):
    code, _, errors = run("record", make_server("dwdp").url, "--steps", 10**6)
    assert code == 3 and "expected 1 to 8333 steps to record" in errors


def test_file_of_another_kind_ends_the_command_with_a_sentence(tmp_path):
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"traceEvents": []}')
    code, _, errors = run("show", foreign)
    assert code == 2 and "is not from vllm-dwdp" in errors and "Traceback" not in errors
    code, _, errors = run("show", tmp_path / "none.json")
    assert code == 2 and "No such file" in errors


def test_place_that_cannot_be_written_ends_the_command_with_a_sentence(make_server, tmp_path):
    out = tmp_path / "no folder" / "trace.json"
    code, _, errors = run("record", make_server("dwdp").url, "--steps", 1, "--out", out)
    assert code == 2 and "can't write" in errors and "Traceback" not in errors
