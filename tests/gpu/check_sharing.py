# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Two and four processes on the GPUs at hand share blocks; every byte is compared.

Whether fabric handles work is found out on a page: on one host ranks share by descriptors.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from figures import say
from gpu import Gpu
from ports import free_port

from vllm_dwdp._core import HandleType
from vllm_dwdp.group.peer_probe import PeerProbe

SCRIPT = Path(__file__).parents[1] / "cuda" / "gpu_process.py"


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


def fabric_answer(driver):
    """Why a page can't be shared by a fabric handle, or that it was read back."""
    if obstacle := driver.obstacles[HandleType.FABRIC]:
        return obstacle
    probe = PeerProbe(driver, job_rank=0)
    ((page, _),) = probe.handles(HandleType.FABRIC)
    return probe.reason(page, peer_job_rank=0) or "a page was read back"


for size in (2, 4):
    endings = run_ranks(size)
    wrong = sum(ending != "0 wrong reads" for ending in endings)
    say(f"{size} processes", endings=endings, wrong=wrong, at_most={"wrong": 0})

if torch.cuda.device_count() < 2:
    answer = "not settled: one GPU"
else:
    answer = run_ranks(2, visible=str, gpu=lambda rank: 0)
say("ranks that see no GPU but their own", answer=answer)
say("fabric handles", answer=fabric_answer(Gpu().driver()))
