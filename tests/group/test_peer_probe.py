# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The page that ranks try before they share more: read back, and refused when it is another's."""

import os

from vllm_dwdp._core import HandleType, HostDriver
from vllm_dwdp.group.peer_probe import PeerProbe


def test_peers_page_is_read_back():
    probes = [PeerProbe(HostDriver(), job_rank=rank) for rank in range(2)]
    ((fd, num_bytes),) = probes[0].handles(HandleType.FILE_DESCRIPTOR)
    assert num_bytes == probes[1].num_bytes
    assert probes[1].reason(fd, peer_job_rank=0) is None


def test_page_of_another_rank_is_refused():
    probes = [PeerProbe(HostDriver(), job_rank=rank) for rank in range(2)]
    ((fd, _),) = probes[0].handles(HandleType.FILE_DESCRIPTOR)
    reason = probes[1].reason(fd, peer_job_rank=3)
    assert reason == "expected the mark of rank 3 in its page, got other bytes"


def test_what_cannot_be_mapped_is_refused_with_the_drivers_reason():
    fd = os.open("/dev/null", os.O_RDONLY)
    reason = PeerProbe(HostDriver(), job_rank=0).reason(fd, peer_job_rank=1)
    assert reason.startswith("expected ")
