# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Fixtures for tests with vLLM: engines on the demo model in processes of their own, MoE layers."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_stand_in import CUDA_STAND_IN
from filelock import FileLock
from safetensors.torch import load_file, save_file
from support import leftovers

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
    # If a shell starts the tests in the background, they and their children would ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with leftovers.marking():
        yield


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, even if a vLLM engine in this process has changed that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_process_group(tmp_path_factory):
    """Process groups of one process; without an engine, vLLM's layers need them to be built."""
    from layer_group import distributed_by_one

    with distributed_by_one(tmp_path_factory.mktemp("dist") / "store"):
        yield


@pytest.fixture(scope="session")
def demo_model():
    return MODEL


@pytest.fixture(scope="session")
def run_generate():
    """Runs generate.py in a process of its own; keyword arguments are environment variables."""

    def run(model: Path, out: Path, *arguments: str, **environment: str):
        return subprocess.run(
            [sys.executable, GENERATE, model, out, *arguments],
            capture_output=True,
            text=True,
            timeout=400,
            env=os.environ | environment,
        )

    return run


@pytest.fixture(scope="session")
def folder_of_the_run(tmp_path_factory):
    """A folder that all processes share among which pytest-xdist divides the tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def generate(run_generate, folder_of_the_run):
    """Runs generate.py once for each set of arguments; returns its output file and its log.

    Other keyword arguments are environment variables.
    """

    def run(
        *arguments: str,
        model: Path = MODEL,
        on_cuda: bool = False,
        gpu_bytes: int | None = None,
        **environment: str,
    ) -> dict:
        environment |= CUDA_STAND_IN if on_cuda else {}
        if gpu_bytes is not None:
            environment = environment | {"FAKE_GPU_BYTES": str(gpu_bytes)}
        key = hashlib.sha256(repr((arguments, str(model), environment)).encode()).hexdigest()
        out, log = folder_of_the_run / f"{key}.json", folder_of_the_run / f"{key}.log"
        with FileLock(folder_of_the_run / f"{key}.lock"):
            if not log.exists():
                done = run_generate(model, out, *arguments, **environment)
                assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
                log.write_text(done.stdout + done.stderr)
        return {"log": log.read_text(), **json.loads(out.read_text())}

    return run


@pytest.fixture(scope="session")
def dense_first_model(tmp_path_factory):
    """The demo model with a dense first layer, made of four of its experts, and five MoE layers."""
    folder = tmp_path_factory.mktemp("models") / "dense_first"
    shutil.copytree(MODEL, folder)
    config = json.loads((MODEL / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mlp_only_layers": [0]}))
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    prefix = "model.layers.0.mlp"
    for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        experts = [tensors[f"{prefix}.experts.{e}.{name}.weight"] for e in range(4)]
        tensors[f"{prefix}.{name}.weight"] = torch.cat(experts, dim=axis)
    moe = (f"{prefix}.experts.", f"{prefix}.gate.weight")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(moe)}
    save_file(kept, file)
    return folder


@pytest.fixture(scope="session")
def stock(generate):
    return generate("--stock")


@pytest.fixture(scope="session")
def stock_eager(generate):
    return generate("--stock", "--eager")
