# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Two and four processes on the GPUs at hand share blocks; every byte is compared."""

import json
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "cuda" / "gpu_process.py"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(size):
    port = free_port()
    processes = []
    for rank in range(size):
        job = {"rank": rank, "size": size, "port": port, "gpu": rank, "steps": 9, "device": "gpu"}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(SCRIPT), json.dumps(job)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    endings = []
    for process in processes:
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-2000:]
        endings.append(json.loads(output)["ending"])
    return endings


for size in (2, 4):
    endings = run_ranks(size)
    print(json.dumps({"check": f"{size} processes", "endings": endings}))
    assert endings == ["0 wrong reads"] * size, endings
