# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The ranks of a group as threads of one process; they meet as the ranks of engines do."""

import threading

from layer_group import Group, forget_models
from support.rank_session import make_manifest, make_session

from vllm_dwdp.bench.ports import free_port
from vllm_dwdp.config import FetchMode
from vllm_dwdp.group.handover.peer_probe import PeerProbe

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
        forget_models()
        return found

    def _start(self, rank, port):
        session = make_session(rank, len(self.models), port)
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
        experts = self.rank_experts[rank]
        session.meet(make_manifest(self.memories[rank].driver, experts.layout.placement))
        session.hand_over(experts.handles, num_parcels=experts.layout.num_parcels)
