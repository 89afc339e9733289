# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Two and four processes on the GPUs at hand share blocks; every byte is compared."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import torch
from figures import say

SCRIPT = Path(__file__).parents[1] / "cuda" / "gpu_process.py"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(size, **options):
    """How each rank ended."""
    port = free_port()
    processes = []
    for rank in range(size):
        job = {"rank": rank, "size": size, "port": port, "gpu": rank, "steps": 9, "device": "gpu"}
        job |= {name: value(rank) for name, value in options.items()}
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
    wrong = sum(ending != "0 wrong reads" for ending in endings)
    say(f"{size} processes", endings=endings, wrong=wrong, at_most={"wrong": 0})

if torch.cuda.device_count() < 2:
    answer = "not settled: one GPU"
else:
    answer = run_ranks(2, visible=str, gpu=lambda rank: 0)
say("ranks that see no GPU but their own", answer=answer)
