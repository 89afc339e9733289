# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Real vLLM engines on the demo checkpoint, each in processes of its own."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "demo_model"
GENERATE = Path(__file__).with_name("generate.py")


@pytest.fixture(scope="session", autouse=True)
def engine_environment():
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
    )


@pytest.fixture(scope="module")
def one_process_group(tmp_path_factory):
    """What vLLM's layers need around them when they are built outside an engine."""
    from layer_group import distributed_by_one

    with distributed_by_one(tmp_path_factory.mktemp("dist") / "store"):
        yield


@pytest.fixture(scope="session")
def demo_model():
    return MODEL


@pytest.fixture(scope="session")
def generate(tmp_path_factory):
    """Run generate.py in a process of its own, once for the same arguments; read what it wrote."""

    @functools.cache
    def run(*arguments: str) -> dict:
        out = tmp_path_factory.mktemp("generate") / "out.json"
        done = subprocess.run(
            [sys.executable, GENERATE, MODEL, out, *arguments],
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return {"log": done.stdout + done.stderr, **json.loads(out.read_text())}

    return run


@pytest.fixture(scope="session")
def stock(generate):
    return generate("--stock")


@pytest.fixture(scope="session")
def stock_eager(generate):
    return generate("--stock", "--eager")
