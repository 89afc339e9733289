# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The gather kernel copies what its reference copies and nothing else, and compiles for GPUs.

Triton's interpreter runs the kernel here, on CPU tensors. A process must choose the interpreter
before it imports Triton, so the scripts run in processes of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent


def run(script, interpret):
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    command = [sys.executable, str(SCRIPTS / script)]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=500, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_kernel_brings_what_the_reference_brings():
    assert "60 cases equal" in run("gather_cases.py", "1")


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_kernel_compiles_for_gpus(capability):
    assert f"sm_{capability}" in run("gather_compile.py", "0")
