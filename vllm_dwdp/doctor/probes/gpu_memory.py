# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Tries with the core whether each GPU can share memory, and whether each pair reads a page."""

from typing import Any

from vllm_dwdp._core import CudaDriver, DriverError, HandleType
from vllm_dwdp.doctor.probes.cuda_library import CudaLibrary
from vllm_dwdp.doctor.probes.pages import read_elsewhere
from vllm_dwdp.group.handover.peer_probe import PeerProbe


def look() -> dict[str, Any]:
    """refused: by GPU, why the core can't use it. descriptors, fabric: obstacles, by GPU.

    reasons: by reader and owner, why the owner's page can't be read, as file descriptor between two
    processes. A list with None for no reason; empty if a GPU can't take part.
    """
    gpus = range(CudaLibrary().num_gpus)
    drivers: list[CudaDriver] = []
    refused: list[str | None] = []
    for gpu in gpus:
        try:
            drivers.append(CudaDriver(gpu))
            refused.append(None)
        except DriverError as error:
            refused.append(str(error))
    return {
        "refused": refused,
        "descriptors": [d.obstacles[HandleType.FILE_DESCRIPTOR] for d in drivers],
        "fabric": [d.obstacles[HandleType.FABRIC] for d in drivers],
        "reasons": _try_pages(drivers) if not any(refused) else [],
    }


def _try_pages(drivers: list[CudaDriver]) -> list[list[str | None]]:
    if any(driver.obstacles[HandleType.FILE_DESCRIPTOR] for driver in drivers):
        return []
    owners = [PeerProbe(driver, job_rank=gpu) for gpu, driver in enumerate(drivers)]
    reasons: list[list[str | None]] = read_elsewhere(owners, kind="cuda")["reasons"]
    return reasons
