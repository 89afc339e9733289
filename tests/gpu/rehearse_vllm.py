# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Rehearses vllm_e2e.py --quick with the packed vLLM on a machine without a GPU, as far as it goes.

    python tests/gpu/rehearse_vllm.py

Run it with a Python that has the packages of the machine with the GPU, and no vLLM. PyTorch may be
built for CPUs. It shows

* that everything that the engine, the worker and the model import is there,
* that this PyTorch has every name of its own that the imported files of vLLM mention,
* that each start of the quick run comes to the worker's first call of the CUDA driver.
"""

import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "bench")]
import packed_vllm  # noqa: E402
from vllm_e2e import QUICK, QUICK_START_S, SMALL, Child, EndToEnd  # noqa: E402

PRETENDED_GPU = Path(__file__).with_name("pretended_gpu")
MODULES = (
    "vllm.entrypoints.llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu.model_runner",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.v1.attention.backends.triton_attn",
    "vllm.model_executor.models.qwen3_moe",
    "vllm.model_executor.layers.fused_moe.experts.triton_moe",
    "vllm_dwdp.engine.worker.executor",
    "vllm_dwdp.engine.worker.gpu",
)
FIRST_DRIVER_CALL = ("Found no NVIDIA driver", "not compiled with CUDA", "no CUDA-capable device")
FIRST_DRIVER_CALL += ("Accelerator expected",)  # from a PyTorch built for CPUs


def environment():
    found = packed_vllm.environment()
    paths = [str(PRETENDED_GPU), found["PYTHONPATH"]]
    return found | {"PYTHONPATH": os.pathsep.join(paths)}


def check_imports():
    """Import MODULES in another process, which prints the number of files and the missing names."""
    command = [sys.executable, __file__, "--imports"]
    subprocess.run(command, check=True, env=os.environ | environment())


def import_all():
    import importlib

    import torch

    start = time.perf_counter()
    for name in MODULES:
        importlib.import_module(name)
    seconds = time.perf_counter() - start
    files = {
        module.__file__
        for name, module in list(sys.modules.items())
        if name.split(".")[0] in ("vllm", "vllm_dwdp") and getattr(module, "__file__", None)
    }
    print(f"imported {len(files)} files of vLLM and dwdp in {seconds:.1f} s on {torch.__version__}")
    missing = {}
    for file in sorted(file for file in files if file.endswith(".py")):
        for name in torch_names(Path(file)):
            if not has_name(torch, name):
                missing.setdefault(name, []).append(Path(file).name)
    for name, where in sorted(missing.items()):
        print(f"  not in this PyTorch: torch.{name} ({', '.join(where)})")


def torch_names(path):
    """The dotted names after `torch.` in a file, except `torch.ops...` and `torch.classes...`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        is_of_torch = isinstance(node, ast.Name) and node.id == "torch" and parts
        if is_of_torch and parts[-1] not in ("ops", "classes"):
            found.add(".".join(reversed(parts)))
    return found


def has_name(module, dotted):
    """Whether a module has a dotted name. Names inside of classes and values aren't checked."""
    for part in dotted.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
        if not isinstance(module, type(ast)):
            return True
    return True


class Rehearsal(EndToEnd):
    """Runs starts of the quick run, each of which fails at its first call of the CUDA driver."""

    def _environment(self, start, rank, port):
        found = super()._environment(start, rank, port)
        paths = [str(PRETENDED_GPU), found["PYTHONPATH"]]
        return found | {"PYTHONPATH": os.pathsep.join(paths)}

    def ending(self, start):
        """Run a start, which must fail; returns its log."""
        with tempfile.TemporaryDirectory() as folder:
            job = {**self._job(start), "out": f"{folder}/out.json"}
            log = Path(folder) / "log"
            with Child(job, self._environment(start, 0, 29_611), log) as child:
                try:
                    child.result(time.monotonic() + QUICK_START_S)
                except AssertionError:
                    return log.read_text(errors="replace")
        raise AssertionError("the start went further than a machine without a GPU can")


def rehearse(start, model):
    log = Rehearsal(model, model.parent, model.parent, is_rehearsal=False).ending(start)
    lines = [line for line in log.splitlines() if any(text in line for text in FIRST_DRIVER_CALL)]
    if not lines:
        sys.exit(f"{start.name}: expected the first driver call, got\n{log[-6000:]}")
    print(f"{start.name}: came to the driver: {lines[0].strip()}")


def main():
    if "--imports" in sys.argv:
        return import_all()
    if packed_vllm.is_installed():
        sys.exit("expected a Python without vLLM, got one that has it; use a fresh environment")
    check_imports()
    with tempfile.TemporaryDirectory() as folder:
        model = SMALL.write(Path(folder) / "random")
        print(json.dumps({"model": model.name}))
        for start in QUICK:
            rehearse(start, model)


if __name__ == "__main__":
    main()
