# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Where triton_kernels is, which some kernels for MXFP4 need and vLLM's build for CPUs lacks.

    python tests/contract/formats/kernel_source.py

This lets pip download vLLM's wheel for CUDA (330 MB) once, in the version that is installed, and
keeps its triton_kernels (0.3 MB) in build/triton_kernels. TRITON_KERNELS_PATH may name another
folder that has it.
"""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VLLM_VERSION = importlib.metadata.version("vllm").partition("+")[0]
KEPT = Path(__file__).resolve().parents[3] / "build" / "triton_kernels" / VLLM_VERSION
PACKAGE = "triton_kernels"
IN_WHEEL = f"vllm/third_party/{PACKAGE}/"


def folder() -> Path | None:
    """The folder to import triton_kernels from; None if it isn't here."""
    path = Path(os.environ.get("TRITON_KERNELS_PATH", KEPT))
    return path if (path / PACKAGE / "__init__.py").exists() else None


def fetch() -> None:
    """Download vLLM's wheel for CUDA and keep its triton_kernels."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", temporary]
        subprocess.run([*command, "--only-binary=:all:", f"vllm=={VLLM_VERSION}"], check=True)
        (wheel,) = Path(temporary).glob("vllm-*.whl")
        unpack(wheel, KEPT)


def unpack(wheel: Path, target: Path) -> None:
    """Write triton_kernels of a wheel of vLLM to a folder."""
    with zipfile.ZipFile(wheel) as files:
        for name in files.namelist():
            if name.startswith(IN_WHEEL) and not name.endswith("/"):
                place = target / PACKAGE / name.removeprefix(IN_WHEEL)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(files.read(name))


def main() -> None:
    if not folder():
        fetch()
    if not (found := folder()):
        sys.exit(f"expected {IN_WHEEL} in vLLM's wheel, {VLLM_VERSION} has none; use 0.32 or 0.33.")
    print(found)


if __name__ == "__main__":
    main()
