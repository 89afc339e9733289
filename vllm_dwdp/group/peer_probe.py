# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Whether memory can be shared, found out by sharing a page: exported, imported, mapped, read back.

What drivers say of themselves doesn't tell: containers, hidden GPUs and missing services do. The
page is shown as experts will be, in one read-only view::

    | own block | the peer's block | private page |
"""

import ctypes
import hashlib

from vllm_dwdp._core import Block, DriverError, HandleType, MemoryDriver, OutOfResources, View
from vllm_dwdp.handle import Handle

REACH = (
    "'nvidia-smi topo -p2p r' shows which GPUs reach each other; MIG, virtual machines and access "
    "control of PCIe switches (ACS) prevent it; put the ranks of a group on GPUs that do"
)


class PeerProbe:
    """A page of this rank, marked with its number, and the same page of each peer."""

    def __init__(self, driver: MemoryDriver, *, job_rank: int) -> None:
        self._driver = driver
        self.num_bytes = driver.granularity
        self._mark = _mark(job_rank)
        self._mark_in_memory = ctypes.create_string_buffer(self._mark)
        self._own = self._make_block(view_offset=0)
        self._shared = self._make_block(view_offset=self.num_bytes)

    @property
    def obstacles(self) -> dict[HandleType, str | None]:
        """See MemoryDriver.obstacles."""
        return self._driver.obstacles

    def handles(self, handle_type: HandleType) -> list[tuple[Handle, int]]:
        """(handle, bytes) of the page; the caller owns it."""
        return [(self._shared.export_handle(handle_type), self.num_bytes)]

    def reason(self, page: Handle, *, peer_job_rank: int) -> str | None:
        """Why a peer's page can't be read; None if it can. Takes the handle.

        Raises OutOfResources: a full GPU says nothing about the peer.
        """
        try:
            peer = self._driver.import_block(page, self.num_bytes, self.num_bytes)
            view = self._stitch(peer)
        except OutOfResources:
            raise
        except DriverError as error:
            return str(error)
        try:
            view.finish()
            marks = [self._read(view.address + i * self.num_bytes) for i in range(3)]
        except OutOfResources:
            raise
        except DriverError as error:
            return f"{error}; {REACH}" if self._driver.kind == "cuda" else str(error)
        if marks[1] != _mark(peer_job_rank):
            return f"expected the mark of rank {peer_job_rank} in its page, got other bytes"
        if marks != [self._mark, marks[1], self._mark]:
            return "expected this rank's marks beside the peer's page, got other bytes"
        return None

    def _make_block(self, *, view_offset: int) -> Block:
        block = self._driver.create_block(self.num_bytes, view_offset)
        block.fill(0, ctypes.addressof(self._mark_in_memory), len(self._mark))
        block.seal()
        return block

    def _stitch(self, peer: Block) -> View:
        """The view of all three, still to be finished."""
        view = self._driver.reserve_view(3 * self.num_bytes)
        view.map_block(0, self._own)
        view.map_block(self.num_bytes, peer)
        view.map_private(2 * self.num_bytes, self.num_bytes)
        mark = ctypes.addressof(self._mark_in_memory)
        view.fill_private(2 * self.num_bytes, mark, len(self._mark))
        return view

    def _read(self, address: int) -> bytes:
        found = ctypes.create_string_buffer(len(self._mark))
        self._driver.copy(ctypes.addressof(found), address, len(self._mark))
        return found.raw


def _mark(job_rank: int) -> bytes:
    return hashlib.sha256(b"dwdp rank %d" % job_rank).digest()
