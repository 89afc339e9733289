# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""More ways to start ranks: a supervisor, a batch file, a front-end without engines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from forms import (
    TWO_RANKS,
    assert_all_end,
    assert_answers_like_stock,
    at_port,
    owned_experts,
    supervisor,
)
from support.server import Server

from vllm_dwdp.bench.ports import free_port

pytestmark = pytest.mark.whole

VLLM = str(Path(sys.executable).with_name("vllm"))
HALVES = ["[0, 8)", "[8, 16)"]


def test_supervisor_serves_one_group_on_a_port_per_rank(demo_model, stock_eager, tmp_path):
    port = free_port(3)
    server = Server(demo_model, *TWO_RANKS, *supervisor(port), log=tmp_path / "log")
    try:
        at_port(server, port + 2).wait_until_ready()  # the supervisor is ready once both ranks are
        assert owned_experts(server.text()) == HALVES
        assert_answers_like_stock([at_port(server, port + rank) for rank in range(2)], stock_eager)
    finally:
        assert_all_end([server])


def batch_line(index, output):
    """One request of a batch file.

    It is a chat, since the demo model's chat template gives the model the message's content alone.
    """
    messages = [{"role": "user", "content": output["prompt"]}]
    body = {"model": "demo", "messages": messages, "temperature": 0, "ignore_eos": True}
    body["max_tokens"] = len(output["tokens"])
    line = {"custom_id": str(index), "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line)


def test_batch_file_is_answered_by_both_ranks_like_stock(demo_model, stock_eager, tmp_path):
    asked, answered = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("\n".join(batch_line(i, o) for i, o in enumerate(stock_eager["outputs"])))
    command = [VLLM, "run-batch", "-i", asked, "-o", answered, "--model", demo_model]
    command += ["--served-model-name", "demo", "--max-num-seqs", "1", *TWO_RANKS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert owned_experts(done.stdout + done.stderr) == HALVES
    answers = [json.loads(line) for line in answered.read_text().splitlines()]
    texts = [a["response"]["body"]["choices"][0]["message"]["content"] for a in answers]
    assert texts == [output["text"] for output in stock_eager["outputs"]]


HEADLESS_WAITS = r"Launching 2 data parallel engine\(s\) in headless mode"
FRONT_END_WAITS = "Started DP Coordinator process"


@pytest.mark.parametrize("first", ["front-end", pytest.param("ranks", marks=pytest.mark.slow)])
def test_front_end_without_engines_serves_ranks_elsewhere(demo_model, stock_eager, tmp_path, first):
    options = (*TWO_RANKS, "--data-parallel-address", "127.0.0.1")
    options += ("--data-parallel-rpc-port", str(free_port(2)))
    servers = {}

    def start(name):
        own = ("--headless", "--data-parallel-start-rank", "0", "--data-parallel-size-local", "2")
        own = ("--data-parallel-size-local", "0") if name == "front-end" else own
        servers[name] = Server(demo_model, *options, *own, log=tmp_path / name)

    try:
        start(first)
        servers[first].wait_for_log(FRONT_END_WAITS if first == "front-end" else HEADLESS_WAITS)
        start("ranks" if first == "front-end" else "front-end")
        servers["front-end"].wait_until_ready()
        assert owned_experts(servers["ranks"].text()) == HALVES
        assert_answers_like_stock([servers["front-end"]], stock_eager)
    finally:
        assert_all_end(servers.values())
