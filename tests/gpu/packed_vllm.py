# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The vLLM that the GPU suite runs: the installed one, or one that pack_vllm.py packed.

The packed one has two of vLLM's compiled libraries, for one kind of GPU. Where PyTorch can't load
them, stand_ins.py takes the place of the operators that a small Qwen3-MoE needs. With SETTINGS,
vLLM needs no other library.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = ROOT / "build" / "gpu-vllm.tar.xz"
FOLDER = ROOT / "build" / "gpu-vllm"
GPU_TESTS = Path(__file__).parent
STAND_INS = GPU_TESTS / "stand_ins.py"

EMPTY = (
    '"""In the place of a compiled library that is imported and, with these settings, not used."""'
)
"""The text of a module in the place of FlashAttention, which vLLM imports with any backend."""

LIBRARIES = ("_C_stable_libtorch", "_moe_C_stable_libtorch")
"""Names of vLLM's compiled libraries that are packed."""

SETTINGS = {
    "attention_config": {"backend": "TRITON_ATTN"},
    "compilation_config": {"mode": 0},
}
"""Options of `vllm.LLM` with which vLLM needs no other compiled library."""

SETTINGS_OF_STAND_INS = {
    **SETTINGS,
    "kernel_config": {
        "ir_op_priority": {"rms_norm": ["native"], "fused_add_rms_norm": ["native"]},
    },
    "compilation_config": {"mode": 0, "custom_ops": ["none"]},
}
"""Options of `vllm.LLM` with which vLLM needs no compiled code beside the stand-ins."""

ENVIRONMENT = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}


def is_installed():
    """Whether Python finds a vLLM that was not packed here."""
    spec = importlib.util.find_spec("vllm")
    return spec is not None and Path(spec.origin).parents[1] != FOLDER


def is_at_hand():
    return is_installed() or ARCHIVE.exists() or FOLDER.exists()


def use():
    """Make this process import the vLLM at hand; returns its version."""
    if not is_installed():
        unpack()
        os.environ.update(ENVIRONMENT)
        sys.path.insert(0, str(FOLDER))
        importlib.invalidate_caches()
    return importlib.metadata.version("vllm")


def stand_ins():
    """A text for the results: the operators of vLLM that stand-ins replace."""
    if is_installed() or not has_stand_ins():
        return "none"
    operators = importlib.import_module(STAND_INS.stem).SIGNATURES
    return f"PyTorch code for {', '.join(name.split('::')[1] for name in operators)}"


def environment():
    """Environment variables of a process that imports the vLLM at hand with this plugin."""
    found = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    paths = [str(GPU_TESTS)]
    if not is_installed():
        unpack()
        found |= ENVIRONMENT
        paths += [str(FOLDER), str(ROOT)]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    return found | {"PYTHONPATH": os.pathsep.join(paths)}


def settings():
    if is_installed():
        return {}
    return SETTINGS_OF_STAND_INS if has_stand_ins() else SETTINGS


def has_stand_ins():
    return (FOLDER / "vllm" / f"{LIBRARIES[0]}.py").exists()


def unpack():
    """Unpack the archive if that wasn't done before, and compile it to byte code.

    Otherwise several processes would compile the same files at the same time.
    """
    if not FOLDER.exists():
        unfinished = FOLDER.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(unfinished, filter="data")
        if not loads_libraries(unfinished):
            for name in LIBRARIES:
                (unfinished / "vllm" / f"{name}.abi3.so").unlink(missing_ok=True)
            shutil.copy(STAND_INS, unfinished / "vllm" / f"{LIBRARIES[0]}.py")
        flash_attention = unfinished / "vllm" / "vllm_flash_attn"
        flash_attention.mkdir(exist_ok=True)
        (flash_attention / "_vllm_fa2_C.py").write_text(EMPTY)
        write_plugin(unfinished)
        command = [sys.executable, "-m", "compileall", "-q", "-j", "0", str(unfinished)]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        unfinished.rename(FOLDER)


def loads_libraries(folder):
    """Whether this PyTorch loads the packed libraries; prints why not."""
    imports = "; ".join(f"import vllm.{name}" for name in LIBRARIES)
    found = subprocess.run(
        [sys.executable, "-c", f"import torch; {imports}"],
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        print(f"stand-ins for vLLM's operators: {found.stderr[-1000:]}", file=sys.stderr)
    return found.returncode == 0


def write_plugin(folder):
    """Write this package's metadata as pip would.

    vLLM looks for the plugin's entry point there, and the plugin for its own version.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (metadata / "METADATA").write_text(text)
    lines = ["[vllm.general_plugins]"]
    lines += [
        f"{key} = {value}" for key, value in project["entry-points"]["vllm.general_plugins"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
