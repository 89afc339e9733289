# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The memory that a rank's experts live in: its driver, copier, streams and clock.

All that differs between host memory and a GPU's, above the driver seam, is in this folder.
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
    """driver: of blocks and views; slot_driver: of slots; kind: as the drivers name it."""

    kind: ClassVar[str]
    driver: MemoryDriver
    slot_driver: MemoryDriver
    numa_node: int = NO_NUMA_NODE
    is_taken_at_once = False
    """Whether what PyTorch allocates is taken at once, or when it is first written to."""
    gpu_name: str | None = None
    """The unique name of this rank's GPU; None for ranks on CPUs."""

    @property
    def place(self) -> str:
        """The memory in which experts lie, for ranks to tell whether it is the same one."""
        return self.gpu_name or f"host {socket.gethostname()}"

    @abstractmethod
    def free_bytes(self) -> int:
        """What this memory can still give."""

    @abstractmethod
    def __init__(self, rank: int) -> None:
        """rank: this rank's number in its group."""

    @property
    def warnings(self) -> list[str]:
        """What went less well than asked with blocks and views, once each."""
        return self.driver.warnings

    def bytes_of(self, view: View) -> torch.Tensor:
        """uint8 [num_bytes] of a finished view, which it keeps mapped."""
        return torch.from_dlpack(view.bytes_tensor())

    @abstractmethod
    def make_copier(self, config: DwdpConfig) -> Copier: ...

    def slice_bytes(self, peer_bytes: int) -> int:
        """How much to copy from one peer at a time, of `peer_bytes` in a layer."""
        return HOST_SLICE_BYTES

    @abstractmethod
    def make_chosen(self, copier: Copier, num_ranks: int) -> MakeChosen[Any]:
        """Returns what makes, for each layer, the object that fetches chosen experts.

        num_ranks: of the group, whose fetched bytes are counted apart.
        """

    def gathered(self) -> list[int] | None:
        """What was copied of chosen experts where only the GPU knows: see fetch.gather.make_totals.

        Waits for the GPU.
        """
        return None

    def link_probe(self, copier: Copier) -> LinkProbe:
        """What measures how fast blocks are copied and read."""
        return HostProbe(self.slot_driver, copier)

    def make_waits(self, seconds: list[float]) -> Waits:
        """What times how long layers wait, by layer."""
        return HostWaits(seconds)

    @abstractmethod
    def current_stream(self) -> int:
        """The handle of the stream that kernels are given to; 0 where the CPU runs them."""

    @abstractmethod
    def seconds(self) -> float:
        """A clock that has waited for all work before it."""

    @abstractmethod
    def give_back(self) -> None:
        """Return freed memory to the system."""
