# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The ranks of a group as threads of one process; they meet as the ranks of engines do."""

import threading

from layer_group import Group
from support.ports import free_port

from vllm_dwdp.config import FetchMode
from vllm_dwdp.engine.moe.context import leave_context
from vllm_dwdp.group.handover.peer_probe import PeerProbe
from vllm_dwdp.group.meet.manifest import Manifest
from vllm_dwdp.group.meet.rendezvous import Rendezvous
from vllm_dwdp.group.meet.store import Endpoint
from vllm_dwdp.group.session import GroupSession

BOUND = "bound"


class MeetingGroup(Group):
    """A group whose ranks start, meet and adopt their experts in `endings`."""

    def adopt_all(self):
        """Does nothing; each rank adopts its experts in `endings`."""

    def endings(self):
        """Start all ranks at once; returns for each BOUND, or the sentence with which it failed."""
        port, size = free_port(), len(self.models)
        found = [None] * size

        def start(rank):
            found[rank] = self._start(rank, port)

        threads = [threading.Thread(target=start, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        leave_context()
        return found

    def _start(self, rank, port):
        size = len(self.models)
        rendezvous = Rendezvous(
            endpoint=Endpoint("127.0.0.1", port),
            job_rank=rank,
            job_size=size,
            dwdp_size=size,
            timeout_s=60,
        )
        session = GroupSession(rendezvous, timeout_s=30)
        try:
            session.open()
            memory = self.memories[rank] = self._make_memory(rank)
            session.try_peers(PeerProbe(memory.driver, job_rank=rank))
            self.adopt(rank)
            self._meet(session, rank)
            self.bind(rank, FetchMode.PREFETCH, num_slots=1, take_handles=session.take_handles)
            session.finish()
        except Exception as error:
            return session.abort(error)
        return BOUND

    def _meet(self, session, rank):
        driver = self.memories[rank].driver
        manifest = Manifest(
            dwdp_version="0.1.0",
            model_fingerprint="abc",
            dtype="bfloat16",
            quantization="None",
            placement=self.rank_experts[rank].layout.placement.ranges,
            host_experts=0,
            memory_kind=driver.kind,
            granularity=driver.granularity,
            tensors=(),
        )
        session.meet(manifest)
        experts = self.rank_experts[rank]
        session.hand_over(experts.handles, num_parcels=experts.layout.num_parcels)
