# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ranks as real processes on the fake driver's GPUs: real sockets, real exchange, real steps."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "gpu_process.py"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(size, **by_rank):
    """What each rank says in the end. by_rank: lists of what a rank's job has of its own."""
    port = free_port()
    processes = []
    for rank in range(size):
        job = {"rank": rank, "size": size, "port": port, "gpu": rank % 2, "steps": 7}
        job |= {name: values[rank] for name, values in by_rank.items()}
        command = [sys.executable, str(SCRIPT), json.dumps(job)]
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    said = []
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        said.append(json.loads(output))
    return said


@pytest.mark.parametrize("size", [2, 4])
def test_kernels_of_every_process_read_right_bytes(size):
    for rank in run_ranks(size):
        assert rank.pop("imports") > size
        assert rank == {
            "ending": "0 wrong reads",
            "violations": [],
            "leaks": [],
            "memory_files": 0,
        }


def test_ranks_that_see_different_gpus_are_refused_with_that_reason():
    """Rank 1 sees only its own GPU, as device 0; rank 0 sees both."""
    said = run_ranks(2, gpu=[0, 0], visible=["0,1", "1"])
    assert said[0]["ending"] == said[1]["ending"]
    sentence = said[0]["ending"]
    assert "dwdp rank 1 can't read the memory of rank 0" in sentence
    assert "must be visible to this process (CUDA_VISIBLE_DEVICES)" in sentence
    assert "(pairs that can't: 0->1, of 2)" in sentence
    for rank in said:
        assert rank["leaks"] == rank["violations"] == []
        assert rank["memory_files"] == 0
