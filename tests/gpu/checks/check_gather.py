# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks that the compiled gather kernel copies the same as its reference, within GPU memory."""

import subprocess
import sys
from pathlib import Path

from figures import say
from parts import Need, part, run_parts

CASES = Path(__file__).parents[2] / "cuda" / "gather_cases.py"


@part("gather kernel beside its reference", Need.TORCH, Need.TRITON)
def gather(device):
    ran = subprocess.run([sys.executable, str(CASES), "cuda"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    say("gather kernel beside its reference", answer=ran.stdout.strip())


if __name__ == "__main__":
    run_parts(gather)
