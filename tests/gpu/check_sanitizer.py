# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The graph check under compute-sanitizer. It runs only when it is asked for by name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from figures import say
from parts import Need, part, run_parts

COMMAND = (
    *("compute-sanitizer", "--error-exitcode", "9"),
    *("--report-api-errors", "no"),  # ranks ask for what a GPU may not have
    *(sys.executable, str(Path(__file__).with_name("check_graphs.py"))),
)
ENVIRONMENT = {"NUM_REPLAYS": "3"}


@part("graphs under compute-sanitizer", Need.TORCH, Need.GRAPHS, Need.TRITON)
def sanitize(device):
    say("graphs under compute-sanitizer", answer=answer())


def answer():
    if shutil.which(COMMAND[0]) is None:
        return "there is no compute-sanitizer on this machine"
    ran = subprocess.run(COMMAND, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
    output = ran.stdout + ran.stderr
    if "Device not supported" in output:
        return "compute-sanitizer refuses this machine: device not supported"
    assert ran.returncode == 0, output[-3000:]
    return "no error"


if __name__ == "__main__":
    run_parts(sanitize)
