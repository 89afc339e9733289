# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The gather kernel, compiled: what its reference copies, from a GPU's memory to a GPU's memory."""

import subprocess
import sys
from pathlib import Path

from figures import say

CASES = Path(__file__).parents[1] / "cuda" / "gather_cases.py"

ran = subprocess.run([sys.executable, str(CASES), "cuda"], capture_output=True, text=True)
assert ran.returncode == 0, ran.stdout + ran.stderr
say("gather kernel beside its reference", answer=ran.stdout.strip())
