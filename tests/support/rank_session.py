# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The session of a rank that stands for an engine's: without a model, on loopback."""

from vllm_dwdp._core import MemoryDriver
from vllm_dwdp.group.meet.manifest import Manifest
from vllm_dwdp.group.meet.rendezvous import Rendezvous
from vllm_dwdp.group.meet.store import Endpoint
from vllm_dwdp.group.session import GroupSession
from vllm_dwdp.layout.placement import Placement

REACH_S, ANSWER_S = 60, 30


def make_session(rank: int, size: int, port: int, *, one_host: bool = True) -> GroupSession:
    """A session that isn't open yet, of a group that is the whole job."""
    rendezvous = Rendezvous(
        endpoint=Endpoint("127.0.0.1", port),
        job_rank=rank,
        job_size=size,
        dwdp_size=size,
        timeout_s=REACH_S,
        one_host=one_host,
    )
    return GroupSession(rendezvous, timeout_s=ANSWER_S)


def make_manifest(driver: MemoryDriver, placement: Placement) -> Manifest:
    """The manifest of a rank whose model has no name and no tensors."""
    return Manifest(
        dwdp_version="0.1.0",
        model_fingerprint="abc",
        dtype="bfloat16",
        quantization="None",
        placement=placement.ranges,
        host_experts=0,
        memory_kind=driver.kind,
        granularity=driver.granularity,
        tensors=(),
        replicated=(),
    )
