# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Finds out whether two ranks can share memory, by sharing a page and reading it back.

A driver's own report isn't enough: containers, hidden GPUs and missing services can prevent
sharing. The page is mapped as experts will be, in one read-only view. The peer's block on its host
is part of the view only where experts will lie in host memory::

    | own block | the peer's block | the peer's block on its host | private page |
"""

import ctypes
import hashlib
from collections.abc import Sequence

from vllm_dwdp._core import Block, DriverError, HandleType, MemoryDriver, OutOfResources, View
from vllm_dwdp.memory.handle import Handle, export_all, import_all

REACH = (
    "'nvidia-smi topo -p2p r' shows which GPUs reach each other; MIG, virtual machines and access "
    "control of PCIe switches (ACS) prevent it; put the ranks of a group on GPUs that do"
)


class PeerProbe:
    """The pages that this rank shares, marked with its number, and a check of its peers' pages.

    uses_host: ranks will share host memory, too. Raises DriverError if this rank can't create the
    pages.
    """

    def __init__(self, driver: MemoryDriver, *, job_rank: int, uses_host: bool = False) -> None:
        self._driver = driver
        self._page_bytes = driver.granularity
        self._mark = _mark(job_rank)
        self._mark_in_memory = ctypes.create_string_buffer(self._mark)
        self._own = self._make_block(view_offset=0)
        self._shared = [self._make_block(view_offset=self._page_bytes)]
        if uses_host:
            self._shared.append(self._make_block(view_offset=2 * self._page_bytes, on_host=True))

    @property
    def obstacles(self) -> dict[HandleType, str | None]:
        """See MemoryDriver.obstacles."""
        return self._driver.obstacles

    def handles(self, handle_type: HandleType) -> list[tuple[Handle, int]]:
        """(handle, bytes) of each page; the caller owns them."""
        return export_all(self._shared_by(handle_type), handle_type)

    def sizes(self, handle_type: HandleType) -> list[int]:
        """Bytes of each page that a peer hands over."""
        return [self._page_bytes] * len(self._shared_by(handle_type))

    def reason(self, pages: Sequence[Handle], *, peer_job_rank: int) -> str | None:
        """Why this rank can't read a peer's pages; None if it can. Takes over the handles.

        Raises OutOfResources when memory is exhausted, which isn't the peer's fault.
        """
        try:
            view = self._stitch(pages)
        except OutOfResources:
            raise
        except DriverError as error:
            return str(error)
        try:
            view.finish()
            own, *theirs, private = self._read_marks(view)
        except OutOfResources:
            raise
        except DriverError as error:
            return f"{error}; {REACH}" if self._driver.kind == "cuda" else str(error)
        if any(mark != _mark(peer_job_rank) for mark in theirs):
            return f"expected the mark of rank {peer_job_rank} in its page, got other bytes"
        if (own, private) != (self._mark, self._mark):
            return "expected this rank's marks beside the peer's page, got other bytes"
        return None

    def _shared_by(self, handle_type: HandleType) -> Sequence[Block]:
        """The pages to share by this type: host memory travels as file descriptors only."""
        return self._shared if handle_type is HandleType.FILE_DESCRIPTOR else self._shared[:1]

    def _make_block(self, *, view_offset: int, on_host: bool = False) -> Block:
        block = self._driver.create_block(self._page_bytes, view_offset, on_host=on_host)
        block.fill(0, ctypes.addressof(self._mark_in_memory), len(self._mark))
        block.seal()
        return block

    def _stitch(self, pages: Sequence[Handle]) -> View:
        """A view of this rank's and a peer's pages; `finish` must be called before it is read."""
        sizes = [self._page_bytes] * len(pages)
        starts = [self._page_bytes * (1 + i) for i in range(len(pages))]
        blocks = [self._own, *import_all(self._driver, pages, sizes, starts)]
        private = len(blocks) * self._page_bytes
        view = self._driver.reserve_view(private + self._page_bytes)
        for page_idx, block in enumerate(blocks):
            view.map_block(page_idx * self._page_bytes, block)
        view.map_private(private, self._page_bytes)
        view.fill_private(private, ctypes.addressof(self._mark_in_memory), len(self._mark))
        return view

    def _read_marks(self, view: View) -> list[bytes]:
        """The first bytes of each page of the view, as many as a mark has."""
        found = ctypes.create_string_buffer(len(self._mark))
        marks = []
        for address in range(view.address, view.address + view.num_bytes, self._page_bytes):
            self._driver.copy(ctypes.addressof(found), address, len(self._mark))
            marks.append(found.raw)
        return marks


def _mark(job_rank: int) -> bytes:
    return hashlib.sha256(b"dwdp rank %d" % job_rank).digest()
