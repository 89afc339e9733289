# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Stand-ins for parts of a machine: files, programs, NVIDIA's driver, a start of Python."""

import os

import pytest
from support.fake_cuda import LIBRARY


@pytest.fixture
def put(tmp_path):
    """A function that writes a file of a host whose root is `tmp_path`."""

    def write(name, text=""):
        path = tmp_path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.fixture
def on_start(tmp_path, monkeypatch):
    """A function that makes every new Python process run some lines first."""

    def run_first(lines):
        folder = tmp_path / "on_start"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(lines)
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return run_first


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A function that puts a shell script in PATH."""

    def put_program(name, script):
        folder = tmp_path / "programs"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return put_program


@pytest.fixture
def gpu_library(tmp_path, monkeypatch, on_start):
    """The fake driver as this machine's driver.

    The fixture is a function that has the driver told something in every process, before use: each
    line is a call of fake_cuda.h without its prefix.
    """
    assert LIBRARY.exists(), f"no {LIBRARY}; run 'bash tests/run.sh', which builds it"
    folder = tmp_path / "driver"
    folder.mkdir()
    (folder / "libcuda.so.1").symlink_to(LIBRARY)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def tell(*calls):
        told = "\n".join(f"fake.fake_cuda_{call}" for call in calls)
        on_start(f"import ctypes\nfake = ctypes.CDLL('libcuda.so.1')\n{told}\n")

    return tell
