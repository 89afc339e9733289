# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs the graph check under compute-sanitizer, only if this check is asked for by name."""

import os
import subprocess
import sys
from pathlib import Path

from figures import say
from parts import Need, part, run_parts

COMMAND = (
    *("compute-sanitizer", "--error-exitcode", "9"),
    *("--report-api-errors", "no"),  # ranks try features that a GPU may lack
    *(sys.executable, str(Path(__file__).with_name("check_graphs.py"))),
)
LIMIT_S = 80
ENVIRONMENT = {"NUM_REPLAYS": "3"}


@part("graphs under compute-sanitizer", Need.TORCH, Need.GRAPHS, Need.TRITON, Need.SANITIZER)
def sanitize(device):
    ran = subprocess.run(
        COMMAND, capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=LIMIT_S
    )
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    say("graphs under compute-sanitizer", answer="no error")


if __name__ == "__main__":
    run_parts(sanitize)
