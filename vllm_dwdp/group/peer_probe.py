# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Whether memory can be shared, found out by sharing a page: exported, imported, mapped, read back.

What drivers say of themselves doesn't tell: containers, hidden GPUs and missing services do.
"""

import ctypes
import hashlib

from vllm_dwdp._core import DriverError, HandleType, MemoryDriver
from vllm_dwdp.handle import Handle


class PeerProbe:
    """A page of this rank, marked with its number, and the same page of each peer."""

    def __init__(self, driver: MemoryDriver, *, job_rank: int) -> None:
        self._driver = driver
        self.num_bytes = driver.granularity
        mark = ctypes.create_string_buffer(_mark(job_rank))
        self._block = driver.create_block(self.num_bytes)
        self._block.fill(0, ctypes.addressof(mark), len(mark) - 1)
        self._block.seal()

    @property
    def obstacles(self) -> dict[HandleType, str | None]:
        """See MemoryDriver.obstacles."""
        return self._driver.obstacles

    def handles(self, handle_type: HandleType) -> list[tuple[Handle, int]]:
        """(handle, bytes) of the page; the caller owns it."""
        return [(self._block.export_handle(handle_type), self.num_bytes)]

    def reason(self, page: Handle, *, peer_job_rank: int) -> str | None:
        """Why a peer's page can't be read; None if it can. Takes the handle."""
        expected = _mark(peer_job_rank)
        found = ctypes.create_string_buffer(len(expected))
        try:
            block = self._driver.import_block(page, self.num_bytes)
            view = self._driver.reserve_view(self.num_bytes)
            view.map_block(0, block)
            view.finish()
            self._driver.copy(ctypes.addressof(found), view.address, len(expected))
        except DriverError as error:
            return str(error)
        if found.raw != expected:
            return f"expected the mark of rank {peer_job_rank} in its page, got other bytes"
        return None


def _mark(job_rank: int) -> bytes:
    return hashlib.sha256(b"dwdp rank %d" % job_rank).digest()
