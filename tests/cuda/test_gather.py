# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The gather kernel: what the reference copies, and nothing else; and it compiles for GPUs.

Triton's interpreter runs it here, on CPU tensors. It must be chosen before Triton is imported, so
this runs in processes of its own.
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
