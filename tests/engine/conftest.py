# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Real vLLM engines on the demo checkpoint, each in processes of its own."""

import functools
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
    # A shell that starts the tests in the background has them ignore Ctrl-C, and all they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with leftovers.marking():
        yield


@pytest.fixture(autouse=True)
def ctrl_c():
    """It raises KeyboardInterrupt, also after a test that ran an engine of vLLM in this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
def run_generate():
    """Run generate.py in a process of its own, with environment variables."""

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
def generate(run_generate, tmp_path_factory):
    """What generate.py wrote and said; it runs once for the same arguments."""

    @functools.cache
    def run(
        *arguments: str, model: Path = MODEL, on_cuda: bool = False, gpu_bytes: int | None = None
    ) -> dict:
        environment = CUDA_STAND_IN if on_cuda else {}
        if gpu_bytes is not None:
            environment = environment | {"FAKE_GPU_BYTES": str(gpu_bytes)}
        out = tmp_path_factory.mktemp("generate") / "out.json"
        done = run_generate(model, out, *arguments, **environment)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return {"log": done.stdout + done.stderr, **json.loads(out.read_text())}

    return run


@pytest.fixture(scope="session")
def dense_first_model(tmp_path_factory):
    """The demo model with a dense first layer, made of four experts; five MoE layers are left."""
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
