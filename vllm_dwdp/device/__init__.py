# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The device that a rank runs on, CPU or GPU: the one place where the two are told apart."""

from vllm_dwdp.device.base import RankMemory
from vllm_dwdp.device.cuda import GpuMemory
from vllm_dwdp.device.host import HostMemory

MEMORY_OF_DEVICE: dict[str, type[RankMemory]] = {"cpu": HostMemory, "cuda": GpuMemory}
"""The class of a rank's memory, by the type of its device. Tests put classes of their own here."""


def memory_kind(device_type: str) -> str:
    """MemoryDriver.kind of a rank on a device of this type, for code that runs before the rank."""
    return MEMORY_OF_DEVICE[device_type].kind


def rank_memory(device_type: str, rank: int) -> RankMemory:
    """The memory of a rank on a device of this type; rank: its number in its group."""
    return MEMORY_OF_DEVICE[device_type](rank)
