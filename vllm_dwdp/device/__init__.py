# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a rank runs on, host or GPU: the one place where the two are told apart."""

from vllm_dwdp.device.base import RankMemory
from vllm_dwdp.device.cuda import GpuMemory
from vllm_dwdp.device.host import HostMemory

MEMORY_OF_DEVICE: dict[str, type[RankMemory]] = {"cpu": HostMemory, "cuda": GpuMemory}
"""By the type of the device that a worker runs on. Tests hand in memory of their own here."""


def memory_kind(device_type: str) -> str:
    """MemoryDriver.kind of a worker's memory, before there is a worker."""
    return MEMORY_OF_DEVICE[device_type].kind


def rank_memory(device_type: str, rank: int) -> RankMemory:
    """Of a worker that runs on a device of this type."""
    return MEMORY_OF_DEVICE[device_type](rank)
