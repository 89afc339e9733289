# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The memory that a rank's experts live in: its driver, copier, streams and clock.

Above the core's MemoryDriver, all that differs between host memory and a GPU's is in this folder.
"""

import socket
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from vllm_dwdp._core import Copier, MemoryDriver, View
from vllm_dwdp.config import DwdpConfig
from vllm_dwdp.device.bandwidth import HostProbe, LinkProbe
from vllm_dwdp.device.numa import NO_NUMA_NODE
from vllm_dwdp.device.waits import HostWaits, Waits
from vllm_dwdp.memory.slots import MakeChosen

HOST_SLICE_BYTES = 1 << 20


class RankMemory(ABC):
    """The memory of one rank.

    driver: makes blocks and views. slot_driver: makes slots. kind: MemoryDriver.kind of both.
    """

    kind: ClassVar[str]
    driver: MemoryDriver
    slot_driver: MemoryDriver
    numa_node: int = NO_NUMA_NODE
    is_shared_by_all = False
    """Whether the group's memory is one: then peers' memory is read as fast as own memory."""
    is_taken_at_once = False
    """Whether PyTorch's allocations take memory at once; if not, they do when first written to."""
    gpu_name: str | None = None
    """The unique name of this rank's GPU; None for ranks on CPUs."""

    @property
    def place(self) -> str:
        """The name of the memory in which experts lie; ranks with the same name share it."""
        return self.gpu_name or f"host {socket.gethostname()}"

    @abstractmethod
    def free_bytes(self) -> int:
        """Bytes of this memory that are free."""

    @abstractmethod
    def __init__(self, rank: int) -> None:
        """rank: this rank's number in its group."""

    @property
    def warnings(self) -> list[str]:
        """Sentences on what the driver could not do as asked with blocks and views, each once."""
        return self.driver.warnings

    def bytes_of(self, view: View) -> torch.Tensor:
        """The bytes of a finished view as uint8 [num_bytes]; the tensor keeps the view mapped."""
        return torch.from_dlpack(view.bytes_tensor())

    @abstractmethod
    def make_copier(self, config: DwdpConfig) -> Copier: ...

    def slice_bytes(self, peer_bytes: int) -> int:
        """The most bytes to copy at a time from one peer, of `peer_bytes` that a layer reads."""
        return HOST_SLICE_BYTES

    @abstractmethod
    def make_chosen(self, copier: Copier, num_ranks: int) -> MakeChosen[Any]:
        """Returns a function that makes, for one layer, the object that fetches chosen experts.

        num_ranks: how many ranks the group has; fetched bytes are counted for each of them.
        """

    def gathered(self) -> list[int] | None:
        """Counts of the copies of chosen experts, if only the GPU counts them; else None.

        See device.gather.make_totals. Waits for the GPU.
        """
        return None

    def link_probe(self, copier: Copier) -> LinkProbe:
        """Returns a probe that measures how fast blocks are copied and read."""
        return HostProbe(self.slot_driver, copier)

    def make_waits(self, seconds: list[float]) -> Waits:
        """Returns an object that adds the time that layers wait to `seconds`, by layer."""
        return HostWaits(seconds)

    @abstractmethod
    def current_stream(self) -> int:
        """The handle of the stream on which kernels are launched now; 0 on a CPU."""

    @abstractmethod
    def seconds(self) -> float:
        """Waits for all work given to the device before, and returns the time in seconds."""

    @abstractmethod
    def give_back(self) -> None:
        """Return freed memory to the system."""
