# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Four ranks with front-ends of their own start at once, with caches that are all empty.

Each has to copy the model's own Python code and to compile. A start takes two minutes on two cores;
DWDP_COLD_STARTS is the number of starts (1).
"""

import json
import os
import shutil

import pytest
from forms import at_port, supervisor
from support.server import Server

from vllm_dwdp.bench.ports import free_port

pytestmark = pytest.mark.slow
NUM_RANKS = 4
CONFIG = """
from transformers.models.qwen3_moe import configuration_qwen3_moe
from .numbers_of_the_demo import IS_REMOTE

class DemoConfig(configuration_qwen3_moe.Qwen3MoeConfig):
    is_remote = IS_REMOTE
"""


@pytest.fixture(scope="module")
def model(demo_model, tmp_path_factory):
    """The demo model, with a configuration that is Python code in two files of its own."""
    folder = tmp_path_factory.mktemp("models") / "demo"
    shutil.copytree(demo_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration_demo.DemoConfig"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_demo.py").write_text(CONFIG)
    (folder / "numbers_of_the_demo.py").write_text("IS_REMOTE = True\n")
    return folder


@pytest.mark.parametrize("attempt", range(int(os.environ.get("DWDP_COLD_STARTS", "1"))))
def test_four_ranks_with_cold_caches_and_remote_code_start_at_once(attempt, model, stock, tmp_path):
    caches = {
        name: str(tmp_path / name)
        for name in ("HF_MODULES_CACHE", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR")
    }
    caches["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    port = free_port(NUM_RANKS + 1)
    options = ("--trust-remote-code", "--max-model-len", "512", *supervisor(port, NUM_RANKS))
    options += ("--data-parallel-size", str(NUM_RANKS), "--distributed-executor-backend", "dwdp")
    server = Server(model, *options, log=tmp_path / "log", environment=caches)
    try:
        at_port(server, port + NUM_RANKS).wait_until_ready()
        first = stock["outputs"][0]
        for rank in range(NUM_RANKS):
            text = at_port(server, port + rank).complete(first["prompt"], len(first["tokens"]))
            assert text == first["text"]
    finally:
        server.stop()
    copied = list((tmp_path / "HF_MODULES_CACHE").rglob("numbers_of_the_demo.py"))
    assert len(copied) == 1
    assert "Can't lock" not in server.text()
