# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The process that takes pages of another process and reads them: see pages.py."""

from typing import Any

from vllm_dwdp._core import CudaDriver, HandleType, HostDriver, MemoryDriver
from vllm_dwdp.group.errors import ExchangeRefused
from vllm_dwdp.group.handover.descriptor.client import DescriptorClient
from vllm_dwdp.group.handover.peer_probe import PeerProbe
from vllm_dwdp.group.meet.job_board import JobBoard

TIMEOUT_S = 30.0


def look(path: str, token: str, kind: str, num_owners: int, board: str) -> dict[str, Any]:
    """reasons: by reader and owner, why the owner's page can't be read, or None.

    board: why the file of a job's board can't be opened through /proc, or None. Readers are as many
    drivers of this kind as there are owners.
    """
    drivers: list[MemoryDriver] = (
        [HostDriver()] if kind == "host" else [CudaDriver(gpu) for gpu in range(num_owners)]
    )
    reasons = []
    for idx, driver in enumerate(drivers):
        probe = PeerProbe(driver, job_rank=num_owners + idx)
        reasons.append([_reason(probe, path, token, owner) for owner in range(num_owners)])
    return {"reasons": reasons, "board": _reason_against_board(board)}


def _reason(probe: PeerProbe, path: str, token: str, owner: int) -> str | None:
    try:
        with DescriptorClient(
            path, bytes.fromhex(token), peer_rank=owner, timeout_s=TIMEOUT_S, subject="page"
        ) as client:
            pages = client.take_handles(owner, probe.sizes(HandleType.FILE_DESCRIPTOR))
    except ExchangeRefused as error:
        return str(error)
    return probe.reason(pages, peer_job_rank=owner)


def _reason_against_board(path: str) -> str | None:
    board = JobBoard(path)
    try:
        board.post("doctor", "was here")
        notes = board.notes()
    except OSError as error:
        return str(error)
    return None if notes == {"doctor": "was here"} else f"expected a note, got {notes}"
