# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ranks in processes of their own, with real sockets, on the fake driver's GPUs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.fake_cuda import (
    FABRIC,
    HOST_VIRTUAL_MEMORY,
    INVALID_DEVICE,
    INVALID_VALUE,
    NOT_SUPPORTED,
    POSIX_DESCRIPTORS,
)
from support.hosts import on_host

from vllm_dwdp.bench.ports import free_port

SCRIPT = Path(__file__).parent / "gpu_process.py"


def run_ranks(size, host=None, **by_rank):
    """Run gpu_process.py for each rank; returns their outcomes.

    by_rank: by key of the job, a list of the ranks' values. host: the names of the ranks' hosts;
    None runs all ranks on this host.
    """
    port = free_port()
    processes = []
    for rank in range(size):
        job = {"rank": rank, "size": size, "port": port, "gpu": rank % 2, "steps": 7}
        job |= {name: values[rank] for name, values in by_rank.items()}
        command = [sys.executable, str(SCRIPT), json.dumps(job)]
        if host is not None:
            command = on_host(host[rank], command)
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    said = []
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        said.append(json.loads(output))
    for rank in said:
        assert rank.pop("leaks") == rank.pop("violations") == []
        assert rank.pop("memory_files") == 0
    return said


@pytest.fixture
def domain(tmp_path):
    """A directory that stands for an NVLink domain; no memory may be left in it."""
    yield str(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("size", [2, 4])
def test_kernels_of_every_process_read_right_bytes(size):
    for rank in run_ranks(size):
        assert rank.pop("imports") > size
        assert rank == {
            "ending": "0 wrong reads",
            "handles": "file descriptors",
            "has_loaded": True,
        }


def test_ranks_that_see_different_gpus_are_refused_with_that_reason():
    """Rank 1 sees only its own GPU, as device 0; rank 0 sees both."""
    said = run_ranks(2, gpu=[0, 0], visible=["0,1", "1"])
    assert said[0]["ending"] == said[1]["ending"]
    sentence = said[0]["ending"]
    assert "dwdp rank 1 can't read the memory of rank 0" in sentence
    assert "must be visible to this process (CUDA_VISIBLE_DEVICES)" in sentence
    assert "let every rank see all GPUs of its host" in sentence
    assert "(pairs that can't: 0->1, of 2)" in sentence
    assert not any(rank["has_loaded"] for rank in said), "it was found before loading"


def test_gpus_without_peer_access_are_refused_before_loading_with_pair_and_remedy():
    """On rank 1 the fourth cuMemSetAccess is the first for memory of rank 0."""
    said = run_ranks(2, fails=[None, ("cuMemSetAccess", 4, INVALID_DEVICE)])
    assert said[0]["ending"] == said[1]["ending"]
    sentence = said[0]["ending"]
    assert "dwdp rank 1 can't read the memory of rank 0 by file descriptors" in sentence
    assert "this GPU can't reach the peer's memory" in sentence
    assert "'nvidia-smi topo -p2p r' shows which GPUs reach each other" in sentence
    assert "(pairs that can't: 0->1, of 2)" in sentence
    assert not any(rank["has_loaded"] for rank in said)


def test_host_memory_is_tried_before_loading_where_experts_will_lie_there():
    """Rank 1 imports the page of rank 0's GPU, but not the page of its host memory."""
    assert run_ranks(2, uses_host=[True] * 2)[0]["ending"] == "0 wrong reads"
    fails = ("cuMemImportFromShareableHandle", 2, INVALID_VALUE)
    said = run_ranks(2, uses_host=[True] * 2, fails=[None, fails])
    assert said[0]["ending"] == said[1]["ending"]
    assert "dwdp rank 1 can't read the memory of rank 0 by file desc" in said[0]["ending"]
    assert not any(rank["has_loaded"] for rank in said)


def test_rank_whose_gpu_cannot_use_host_memory_ends_all_before_loading():
    said = run_ranks(2, uses_host=[True] * 2, lacks=[[], [HOST_VIRTUAL_MEMORY]])
    assert said[0]["ending"] == said[1]["ending"]
    assert "HOST_NUMA_VIRTUAL_MEMORY" in said[0]["ending"]
    assert "leave dwdp.host_experts out" in said[0]["ending"]
    assert not any(rank["has_loaded"] for rank in said)


def test_ranks_that_see_different_gpus_share_by_fabric_where_they_can(domain):
    for rank in run_ranks(2, gpu=[0, 0], visible=["0,1", "1"], fabric=[domain] * 2):
        assert rank["ending"] == "0 wrong reads"
        assert rank["handles"] == "fabric handles"


def test_ranks_of_one_host_prefer_descriptors(domain):
    for rank in run_ranks(2, fabric=[domain] * 2):
        assert rank["ending"] == "0 wrong reads"
        assert rank["handles"] == "file descriptors"


@pytest.mark.parametrize(
    "fails",
    [
        ("cuMemExportToShareableHandle", 2, NOT_SUPPORTED),
        ("cuMemImportFromShareableHandle", 1, INVALID_VALUE),
    ],
    ids=["export", "import"],
)
def test_descriptors_that_fail_on_a_page_are_passed_over_by_all(domain, fails):
    """Only rank 1 fails, at its second export; the first export is its trial of fabric handles."""
    for rank in run_ranks(3, fabric=[domain] * 3, fails=[None, fails, None]):
        assert rank["ending"] == "0 wrong reads"
        assert rank["handles"] == "fabric handles"


def test_fabric_handles_that_fail_on_a_page_end_all_ranks(domain):
    """Rank 1 can't see rank 0's GPU, and its third export fails, that of a page by fabric."""
    fails = ("cuMemExportToShareableHandle", 3, NOT_SUPPORTED)
    said = run_ranks(2, gpu=[0, 0], visible=["0,1", "1"], fabric=[domain] * 2, fails=[None, fails])
    assert said[0]["ending"] == said[1]["ending"]
    refusal = "by fabric handles: taking the page of dwdp rank 1: the peer refused: cuMemExport"
    assert refusal in said[0]["ending"]


@pytest.mark.hosts
@pytest.mark.parametrize("size", [2, 4])
def test_hosts_of_one_domain_share_by_fabric(domain, size):
    names = [f"host{rank}" for rank in range(size)]
    for rank in run_ranks(size, host=names, fabric=[domain] * size):
        assert rank["ending"] == "0 wrong reads"
        assert rank["handles"] == "fabric handles"


@pytest.mark.hosts
def test_hosts_without_imex_are_refused_with_both_reasons(domain):
    """Only the host of rank 1 is in an NVLink domain."""
    said = run_ranks(2, host=["here", "there"], fabric=[None, domain])
    assert said[0]["ending"] == said[1]["ending"]
    sentence = said[0]["ending"]
    assert "rank 0 can't read the memory of rank 1 by file descriptors: it is on host" in sentence
    assert "rank 0 can't read the memory of rank 1 by fabric handles: cuMemCreate" in sentence
    assert "nvidia-imex" in sentence and "(host here)" in sentence
    assert sentence.count("(pairs that can't: 1->0, 0->1, of 2)") == 2


@pytest.mark.hosts
def test_hosts_of_two_domains_are_refused_after_the_trial(tmp_path):
    domains = [tmp_path / "a", tmp_path / "b"]
    for domain in domains:
        domain.mkdir()
    said = run_ranks(2, host=["here", "there"], fabric=list(map(str, domains)))
    assert said[0]["ending"] == said[1]["ending"]
    assert "both GPUs must be in one NVLink domain" in said[0]["ending"]
    assert not any(path for domain in domains for path in domain.iterdir())


def test_attributes_that_ranks_lack_are_named(domain):
    """Rank 0 supports only descriptors, and rank 1 only fabric handles."""
    lacks = [[FABRIC], [POSIX_DESCRIPTORS]]
    said = run_ranks(2, fabric=[domain] * 2, lacks=lacks)
    assert said[0]["ending"] == said[1]["ending"]
    assert "by file descriptors: expected GPU 1 to have" in said[0]["ending"]
    assert "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED" in said[0]["ending"]
    assert "by fabric handles: expected GPU 0 to have" in said[0]["ending"]
    assert "HANDLE_TYPE_FABRIC_SUPPORTED" in said[0]["ending"]
