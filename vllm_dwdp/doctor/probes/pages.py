# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Shares a page with another process as ranks do, and says whether that process could read it.

this process: PeerProbe, DescriptorServer  --descriptor-->  page_reader: DescriptorClient,
PeerProbe
"""

import os
from collections.abc import Sequence
from typing import Any

from vllm_dwdp._core import HandleType
from vllm_dwdp.doctor.child import ask
from vllm_dwdp.group.handover.descriptor.server import DescriptorServer
from vllm_dwdp.group.handover.peer_probe import PeerProbe
from vllm_dwdp.group.meet.job_board import FILE_NAME

LIMIT_S = 3600.0
"""The limit of the process that asks for all of this is shorter."""


def read_elsewhere(owners: Sequence[PeerProbe], *, kind: str) -> dict[str, Any]:
    """What the other process says; see page_reader. kind: MemoryDriver.kind of the owners."""
    server = DescriptorServer(lambda parcel: _descriptors(owners[parcel]), num_parcels=len(owners))
    board = os.memfd_create(FILE_NAME)
    try:
        said: dict[str, Any] = ask(
            "page_reader",
            limit_s=LIMIT_S,
            is_nested=True,
            path=server.path,
            token=server.token.hex(),
            kind=kind,
            num_owners=len(owners),
            board=f"/proc/{os.getpid()}/fd/{board}",
        )
    finally:
        server.close()
        os.close(board)
    return said


def _descriptors(owner: PeerProbe) -> list[tuple[int, int]]:
    pages = owner.handles(HandleType.FILE_DESCRIPTOR)
    return [(handle, num_bytes) for handle, num_bytes in pages if isinstance(handle, int)]
