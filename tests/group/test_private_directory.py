# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a killed rank leaves is removed by the next one; what a living rank uses is not."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vllm_dwdp.group.descriptor_server import DescriptorServer

SERVE = """
import time
from vllm_dwdp.group.descriptor_server import DescriptorServer
server = DescriptorServer(lambda layer_idx: [], num_layers=1)
print(server.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def runtime(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", path)
        yield Path(path)


def test_directory_of_a_killed_rank_is_removed_by_the_next_and_a_living_ones_is_kept(runtime):
    command = [sys.executable, "-c", SERVE]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    living, killed = (Path(rank.stdout.readline().strip()).parent for rank in ranks)
    ranks[1].send_signal(signal.SIGKILL)
    ranks[1].wait()
    assert {living, killed} == set(runtime.iterdir())
    server = DescriptorServer(lambda layer_idx: [], num_layers=1)
    assert {living, Path(server.path).parent} == set(runtime.iterdir())
    server.close()
    ranks[0].kill()
    ranks[0].wait()
