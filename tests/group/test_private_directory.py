# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Sockets go to vLLM's or Python's temporary directory, even if its path is long.

Directories that killed ranks left there are removed.
"""

import multiprocessing.util
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vllm_dwdp.group.errors import GroupError
from vllm_dwdp.group.handover.descriptor.client import DescriptorClient
from vllm_dwdp.group.handover.descriptor.private_directory import PrivateDirectory
from vllm_dwdp.group.handover.descriptor.server import DescriptorServer

SERVE = """
import time
from vllm_dwdp.group.handover.descriptor.server import DescriptorServer
server = DescriptorServer(lambda layer_idx: [], num_parcels=1)
print(server.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(monkeypatch):
    multiprocessing.util.get_temp_dir()  # it must not be made inside of `path` below
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        monkeypatch.setattr(tempfile, "tempdir", path)
        monkeypatch.setenv("TMPDIR", path)
        monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
        yield Path(path)


def serving_directory():
    """The directory in which a server makes its own; checks that a client reaches its socket."""
    server = DescriptorServer(lambda layer_idx: [], num_parcels=1)
    DescriptorClient(server.path, server.token, peer_rank=1, timeout_s=5).close()
    server.close()
    return Path(server.path).parent.parent


def test_directory_of_a_killed_rank_is_removed_by_the_next_and_a_living_ones_is_kept(folder):
    command = [sys.executable, "-c", SERVE]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    living, killed = (Path(rank.stdout.readline().strip()).parent for rank in ranks)
    ranks[1].send_signal(signal.SIGKILL)
    ranks[1].wait()
    assert {living, killed} == set(folder.iterdir())
    server = DescriptorServer(lambda layer_idx: [], num_parcels=1)
    assert {living, Path(server.path).parent} == set(folder.iterdir())
    server.close()
    ranks[0].kill()
    ranks[0].wait()


def test_socket_goes_to_pythons_directory_for_temporary_files(folder):
    assert serving_directory() == folder


def test_socket_goes_to_vllms_directory_for_sockets_first(folder, monkeypatch):
    sockets = folder / "sockets"
    sockets.mkdir()
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", str(sockets))
    assert serving_directory() == sockets
    sockets.rmdir()
    assert serving_directory() == folder


def test_longer_paths_than_a_socket_may_have_work(folder, monkeypatch):
    long = folder / ("long" * 60) / ("path" * 60)
    long.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert serving_directory() == long


def test_no_place_at_all_is_named_before_loading(folder, monkeypatch, start):
    with (
        monkeypatch.context() as only_here,
        pytest.raises(GroupError, match=r"missing/vllm-dwdp-.*; set TMPDIR to a writable direc"),
    ):
        only_here.setattr(tempfile, "tempdir", str(folder / "missing"))
        PrivateDirectory()
    ranks = [start(0, load_s=60), start(1, temporary_directory="/proc/missing")]
    endings = {rank.ending() for rank in ranks}
    assert len(endings) == 1
    reason = "dwdp rank 1 failed while trying its peers' memory: expected to make a directory"
    assert reason in endings.pop()


@pytest.mark.hosts
def test_read_only_tmp_is_passed_over(folder):
    read_only = "mount --bind /tmp /tmp && mount -o remount,ro,bind /tmp"
    command = f"{read_only} && exec {sys.executable} -c '{SERVE}'"
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    unshared = ["unshare", "--mount", "sh", "-c", command]
    with subprocess.Popen(unshared, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline().startswith("/var/tmp/vllm-dwdp-")
        server.terminate()
