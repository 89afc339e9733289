# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Two servers, one rank each: a peer that stops, or dies, doesn't stop the other."""

import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

MODEL = str(Path(__file__).resolve().parents[2] / "examples" / "demo_model")
PROMPT = {"model": "demo", "prompt": "It is a truth", "max_tokens": 64, "temperature": 0}


class Server:
    def __init__(self, rank, rpc_port, environment, log):
        self.rank, self.log, self.port = rank, log, free_port()
        command = [str(Path(sys.executable).with_name("vllm")), "serve", MODEL]
        command += ["--served-model-name", "demo", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--data-parallel-size", "2", "--data-parallel-rank", str(rank)]
        command += ["--data-parallel-rpc-port", str(rpc_port), "--max-model-len", "512"]
        command += ["--distributed-executor-backend", "dwdp", "--enforce-eager"]
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    def wait_until_ready(self):
        deadline = time.monotonic() + 300
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1)
                return
            except OSError:
                time.sleep(0.5)
        pytest.fail(self.log.read_text()[-3000:])

    def answer(self):
        """Text and seconds of one request."""
        start = time.monotonic()
        body = json.dumps({**PROMPT, "ignore_eos": True}).encode()
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = json.load(answer)["choices"][0]["text"]
        return text, time.monotonic() - start

    def worker(self):
        return psutil.Process(int(re.findall(r"Worker pid=(\d+)", self.log.read_text())[0]))

    def stop(self):
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for left in psutil.wait_procs(family, timeout=20)[1]:
            left.kill()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def servers(engine_environment, tmp_path):
    rpc_port = free_port()
    made = [
        Server(rank, rpc_port, engine_environment, tmp_path / f"{rank}.log") for rank in range(2)
    ]
    try:
        for server in made:
            server.wait_until_ready()
        yield made
    finally:
        for server in made:
            server.stop()


def test_rank_answers_the_same_while_its_peer_is_stopped_and_after_it_was_killed(servers):
    survivor, peer = servers
    texts, seconds = zip(*(survivor.answer() for _ in range(5)), strict=True)
    usual_s = statistics.median(seconds)
    worker = peer.worker()
    for strike in (signal.SIGSTOP, signal.SIGKILL):
        worker.send_signal(strike)
        after, seconds = zip(*(survivor.answer() for _ in range(5)), strict=True)
        assert set(after) == set(texts) and len(set(texts)) == 1
        assert statistics.median(seconds) < 5 * usual_s
