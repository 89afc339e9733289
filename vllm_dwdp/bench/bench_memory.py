# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures how fast a rank copies out of its peers' memory, by the size of slices and by peers.

This process is the rank. It makes the memory of its peers itself, hands it over as peers do, and
copies out of it into a slot as a rank does. No other rank copies meanwhile.
"""

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import psutil
import torch

from vllm_dwdp._core import (
    Copier,
    CopyList,
    CudaCopier,
    CudaDriver,
    HandleType,
    HostCopier,
    HostDriver,
    MemoryDriver,
    SlotPage,
    View,
)
from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.device.numa import NO_NUMA_NODE, read_numa_nodes

SLICE_BYTES = tuple(1 << power for power in (16, 18, 20, 22, 24))
SECONDS, FEWEST = 0.3, 3
"""Each figure is the median of the runs that end within so many seconds, and of at least FEWEST."""


@dataclass(frozen=True)
class CopySpeed:
    """Copies out of the memory of some peers in turn, in slices.

    bytes_per_s: while a slot is filled. latency_s: of one slice alone, whatever the number of
    peers, from its submission until the host knows that it has ended.
    """

    num_peers: int
    slice_bytes: int
    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True)
class Machine:
    """Memory of this machine for a rank and its peers.

    reader, copier: of the rank. owners: the drivers of the peers' memory. places: by peer, where
    its memory lies, for the report. peer_bytes: memory of each peer. slot_bytes: of the slot.
    """

    reader: MemoryDriver
    copier: Copier
    owners: list[MemoryDriver]
    places: list[str]
    peer_bytes: int
    slot_bytes: int

    @classmethod
    def of_this(cls, num_peers: int, *, copy_threads: int, use_batches: bool) -> "Machine":
        """GPUs if there are any. copy_threads: for hosts. use_batches: for GPUs."""
        if torch.cuda.is_available():
            return cls.of_gpus(num_peers, torch.cuda.device_count(), use_batches=use_batches)
        return cls.of_host(num_peers, copy_threads)

    @classmethod
    def of_host(cls, num_peers: int, copy_threads: int) -> "Machine":
        """A rank on the first NUMA node, and peers on the others, if there are any."""
        own, *others = _nodes()
        peers = [others[peer % len(others)] if others else own for peer in range(num_peers)]
        return cls(
            reader=HostDriver(name="dwdp-bench", numa_node=own.number),
            copier=HostCopier(num_threads=copy_threads, cores=sorted(own.cores)),
            owners=[HostDriver(name="dwdp-bench-peer", numa_node=node.number) for node in peers],
            places=[node.name for node in peers],
            peer_bytes=128 << 20,
            slot_bytes=64 << 20,
        )

    @classmethod
    def of_gpus(
        cls,
        num_peers: int,
        num_gpus: int,
        *,
        use_batches: bool = False,
        library: str = "libcuda.so.1",
    ) -> "Machine":
        """GPU 0 reads the others in turn, or itself if it is the only one."""
        gpus = [1 + peer % (num_gpus - 1) if num_gpus > 1 else 0 for peer in range(num_peers)]
        driver = CudaDriver(0, library)
        return cls(
            reader=driver,
            copier=CudaCopier(driver, use_batches=use_batches),
            owners=[CudaDriver(gpu, library) for gpu in gpus],
            places=[f"GPU {gpu}" for gpu in gpus],
            peer_bytes=1 << 30,
            slot_bytes=512 << 20,
        )

    def peers(self) -> View:
        """A view of the memory of all peers, side by side; each is filled with its number + 1."""
        size = self.peer_bytes
        view = self.reader.reserve_view(len(self.owners) * size)
        for index, owner in enumerate(self.owners):
            content = torch.full((size,), index + 1, dtype=torch.uint8)
            own = owner.create_block(size, index * size)
            own.fill(0, content.data_ptr(), size)
            own.seal()
            handle = own.export_handle(HandleType.FILE_DESCRIPTOR)
            view.map_block(index * size, self.reader.import_block(handle, size, index * size))
        view.finish()
        return view


def bench_memory(
    machine: Machine, num_peers: Sequence[int], slice_bytes: Sequence[int]
) -> list[CopySpeed]:
    """Measure all pairs. num_peers: at most those of the machine.

    Raises BenchError for slices that don't fit into the slot, and if memory doesn't suffice.
    """
    _check(machine, slice_bytes)
    view = machine.peers()
    slot = machine.reader.create_slot_page(machine.slot_bytes)
    latency_s = {
        size: _seconds(machine.copier, CopyList([[(slot.address, view.address, size)]]))
        for size in slice_bytes
    }
    return [
        CopySpeed(
            peers,
            size,
            slot.num_bytes / _seconds(machine.copier, _copies(machine, view, slot, peers, size)),
            latency_s[size],
        )
        for peers in num_peers
        for size in slice_bytes
    ]


def _check(machine: Machine, slice_bytes: Sequence[int]) -> None:
    for size in slice_bytes:
        if not 0 < size <= machine.slot_bytes:
            raise BenchError(f"expected slices of 1 to {machine.slot_bytes} bytes, got {size}.")
    needed = len(machine.owners) * machine.peer_bytes + machine.slot_bytes
    free = psutil.virtual_memory().available
    if machine.reader.kind == "host" and needed > free:
        raise BenchError(
            f"expected {needed >> 20} MiB of free memory for {len(machine.owners)} peers, got "
            f"{free >> 20} MiB; measure with fewer ranks."
        )


def _copies(machine: Machine, view: View, slot: SlotPage, peers: int, size: int) -> CopyList:
    """Fill the slot in slices, from one peer after the other."""
    assert machine.slot_bytes <= machine.peer_bytes, "a peer holds more than a slot takes"
    copies = []
    for number, at in enumerate(range(0, slot.num_bytes, size)):
        peer, slice_of_peer = number % peers, number // peers
        source = view.address + peer * machine.peer_bytes + slice_of_peer * size
        copies.append((slot.address + at, source, min(size, slot.num_bytes - at)))
    return CopyList([copies], [slot], [view])


def _seconds(copier: Copier, copies: CopyList) -> float:
    """The median time of the copies, after a first run."""
    found: list[float] = []
    _run(copier, copies)
    end = time.perf_counter() + SECONDS
    while len(found) < FEWEST or time.perf_counter() < end:
        found.append(_run(copier, copies))
    return statistics.median(found)


def _run(copier: Copier, copies: CopyList) -> float:
    start = time.perf_counter()
    copier.submit(copies)
    copier.drain()
    return time.perf_counter() - start


class _Node(NamedTuple):
    """A NUMA node, and those of its cores that this process may use."""

    number: int
    cores: set[int]

    @property
    def name(self) -> str:
        return "this host" if self.number == NO_NUMA_NODE else f"NUMA node {self.number}"


def _nodes() -> list[_Node]:
    """The nodes with cores that this process may use; the whole host if there aren't several."""
    allowed = os.sched_getaffinity(0)
    masks = read_numa_nodes()
    nodes = [
        _Node(number, cores)
        for number, mask in sorted(masks.items())
        if (cores := {core for core in allowed if mask >> core & 1})
    ]
    return nodes if len(nodes) > 1 else [_Node(NO_NUMA_NODE, allowed)]
