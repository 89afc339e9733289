# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The memory of an arm: shared pages count once, and GPUs are asked for the arm's own processes."""

import mmap
import os
import subprocess
import sys

import psutil
import pytest

from vllm_dwdp.bench.memory_use import gpu_bytes
from vllm_dwdp.memory.residency import anonymous_and_shared_bytes

MIB = 1 << 20
HOLD = """
import mmap, os, sys
shared = mmap.mmap(-1, 64 << 20, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
shared.write(b"x" * (64 << 20))
if os.fork() == 0:
    own = bytearray(b"x" * (32 << 20))
sum(shared[::4096])
print("ready", flush=True)
sys.stdin.read()
"""


def test_shared_pages_count_once_and_pages_of_files_do_not():
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert [process.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
        shown = psutil.Process(process.pid)
        pids = [shown.pid, *(child.pid for child in shown.children())]
        found = sum(map(anonymous_and_shared_bytes, pids))
        process.stdin.close()
    assert 96 * MIB <= found < 130 * MIB


def test_mapped_files_are_left_out(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 64 * MIB)
    before = anonymous_and_shared_bytes()
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
        assert sum(mapped[at] for at in range(0, 64 * MIB, 4096)) > 0
        assert anonymous_and_shared_bytes() - before < 16 * MIB


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A function that makes an nvidia-smi with this output."""

    def make(output, code=0):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {code}\n")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return make


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("11, 100\n12, 200\n99, 400", 300 * MIB),
        ("99, 400", None),
        ("", None),
        ("11, 100\n12, [N/A]", None),
    ],
)
def test_gpus_are_asked_for_the_processes_of_the_arm(nvidia_smi, output, found):
    nvidia_smi(output)
    assert gpu_bytes({11, 12}) == found


def test_without_gpus_there_is_no_figure(nvidia_smi):
    nvidia_smi("NVIDIA-SMI has failed", code=9)
    assert gpu_bytes({11}) is None
