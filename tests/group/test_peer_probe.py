# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ranks first try a page of each peer, and refuse one that they can't read or that is foreign."""

import gc
import os
import resource

import psutil
import pytest
from support.fake_cuda import OUT_OF_MEMORY, FakeCuda, num_memory_files

from vllm_dwdp._core import DriverError, HandleType, HostDriver, OutOfResources
from vllm_dwdp.group.handover.peer_probe import PeerProbe

PROBING_CALLS = (
    "cuMemImportFromShareableHandle",
    "cuMemAddressReserve",
    "cuMemMap",
    "cuMemCreate",
    "cuMemSetAccess",
    "cuMemcpyAsync",
)


def test_peers_page_is_read_back():
    probes = [PeerProbe(HostDriver(), job_rank=rank) for rank in range(2)]
    ((fd, num_bytes),) = probes[0].handles(HandleType.FILE_DESCRIPTOR)
    assert probes[1].sizes(HandleType.FILE_DESCRIPTOR) == [num_bytes]
    assert probes[1].reason([fd], peer_job_rank=0) is None


def test_peers_page_on_its_host_is_read_back_too():
    fake = FakeCuda()
    fake.reset()
    probes = [PeerProbe(fake.driver(r), job_rank=r, uses_host=True) for r in range(2)]
    pages, sizes = zip(*probes[0].handles(HandleType.FILE_DESCRIPTOR), strict=True)
    assert list(sizes) == probes[1].sizes(HandleType.FILE_DESCRIPTOR) and len(sizes) == 2
    assert probes[1].reason(pages, peer_job_rank=0) is None
    (in_gpu, _), (on_host, _) = probes[0].handles(HandleType.FILE_DESCRIPTOR)
    os.close(on_host)
    ((foreign, _),) = PeerProbe(fake.driver(0), job_rank=7).handles(HandleType.FILE_DESCRIPTOR)
    assert probes[1].reason([in_gpu, foreign], peer_job_rank=0).startswith("expected the mark of")
    del probes
    gc.collect()
    assert fake.leaks == fake.violations == []
    fake.reset()


def test_page_that_is_not_exported_leaves_no_descriptor_of_the_others():
    fake = FakeCuda()
    fake.reset()
    probe = PeerProbe(fake.driver(), job_rank=0, uses_host=True)
    before = num_memory_files()
    fake.fail("cuMemExportToShareableHandle", 2)
    with pytest.raises(DriverError):
        probe.handles(HandleType.FILE_DESCRIPTOR)
    assert num_memory_files() == before
    fake.reset()


def test_page_of_another_rank_is_refused():
    probes = [PeerProbe(HostDriver(), job_rank=rank) for rank in range(2)]
    ((fd, _),) = probes[0].handles(HandleType.FILE_DESCRIPTOR)
    reason = probes[1].reason([fd], peer_job_rank=3)
    assert reason == "expected the mark of rank 3 in its page, got other bytes"


def test_what_cannot_be_mapped_is_refused_with_the_drivers_reason():
    fd = os.open("/dev/null", os.O_RDONLY)
    reason = PeerProbe(HostDriver(), job_rank=0).reason([fd], peer_job_rank=1)
    assert reason.startswith("expected ")


@pytest.mark.parametrize("symbol", PROBING_CALLS)
def test_full_gpu_is_no_reason_against_a_peer(symbol):
    fake = FakeCuda()
    fake.reset()
    probes = [PeerProbe(fake.driver(rank), job_rank=rank) for rank in range(2)]
    ((fd, _),) = probes[0].handles(HandleType.FILE_DESCRIPTOR)
    fake.fail(symbol, 1, OUT_OF_MEMORY)
    with pytest.raises(OutOfResources, match=f"{symbol} .*CUDA_ERROR_OUT_OF_MEMORY"):
        probes[1].reason([fd], peer_job_rank=0)
    del probes
    gc.collect()
    assert fake.leaks == fake.violations == []
    fake.reset()


def test_own_lack_of_addresses_is_no_reason_against_a_peer():
    probes = [PeerProbe(HostDriver(), job_rank=rank) for rank in range(2)]
    ((fd, _),) = probes[0].handles(HandleType.FILE_DESCRIPTOR)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    num_bytes_used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes_used, limits[1]))
    try:
        with pytest.raises(OutOfResources, match=r"mmap of .* failed: Cannot allocate memory"):
            probes[1].reason([fd], peer_job_rank=0)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
