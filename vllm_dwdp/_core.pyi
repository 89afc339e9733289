# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The compiled core (csrc/module.cc).

Sizes and offsets are in bytes. Blocks, slot pages and views consist of whole pages of the driver's
granularity, their offsets are multiples of it, and none of them is empty. `fill`, `fill_private`,
`seal` and `finish` release the GIL. A call that is refused raises DriverError and leaves the object
as it was.
"""

import enum
from collections.abc import Sequence
from typing import Any

class DriverError(RuntimeError):
    """One sentence: what was expected, what came, what to do."""

class OutOfResources(DriverError):
    """This process, its host or its GPU has no memory, addresses, mappings or descriptors left."""

class HandleType(enum.Enum):
    """The type of handle by which a process names its memory to another one."""

    FILE_DESCRIPTOR = ...
    """An int; works between processes of one host."""
    FABRIC = ...
    """64 bytes (CUmemFabricHandle); works between the hosts of one NVLink domain."""

class MemoryDriver:
    """A kind of memory. Abstract: make one of its subclasses."""

    @property
    def kind(self) -> str:
        """The kind of memory, "host" or "cuda", which must be the same on all peers."""
    @property
    def granularity(self) -> int:
        """The bytes of a page."""
    @property
    def obstacles(self) -> dict[HandleType, str | None]:
        """For each type that this memory knows, why it can't share memory; None if it can."""
    @property
    def warnings(self) -> list[str]:
        """Sentences about requests that the driver could not fulfil and went on without."""
    def copy(self, destination_address: int, source_address: int, num_bytes: int) -> None:
        """Copy, and return when the copy has ended; for start-up only. Releases the GIL."""
    def create_block(self, num_bytes: int, view_offset: int = 0, *, on_host: bool = False) -> Block:
        """Return an open block of zeroes, which views will map at `view_offset`.

        `on_host`: on GPUs, allocate it in host memory.
        """
    def import_block(self, handle: int | bytes, num_bytes: int, view_offset: int = 0) -> Block:
        """Return a peer's block, which is sealed. Size and offset must be those of its creation.

        The block owns the handle: a descriptor is closed with the block at the latest, or at once
        if the import is refused.
        """
    def create_slot_page(self, num_bytes: int, view_offset: int = 0) -> SlotPage:
        """Return zeroed memory for copies, which most views will map at `view_offset`."""
    def create_scratch_page(self, num_bytes: int) -> SlotPage:
        """Return zeroed memory for copies that only measure a link; no view maps it."""
    def reserve_view(self, num_bytes: int) -> View:
        """Return a view in which nothing is mapped yet."""

class HostDriver(MemoryDriver):
    """Memory files (memfd) that the processes of one host share."""

    def __init__(
        self,
        *,
        name: str = "dwdp",
        numa_node: int = -1,
        huge_pages: bool = True,
        require_write_seal: bool = True,
    ) -> None:
        """`name` is shown in /proc/PID/maps; `numa_node` is preferred for own memory, -1: none.

        `huge_pages`: ask for huge pages for own memory. `require_write_seal`: refuse blocks that
        the peer's kernel could not seal against writes.
        """

class CudaDriver(MemoryDriver):
    """Memory of one GPU, shared by file descriptors on one host, by fabric handles beyond it.

    Needs CUDA 11.3 or later, and a GPU with virtual memory management that can export one of them.
    """

    def __init__(self, gpu: int, library: str = "libcuda.so.1") -> None:
        """`gpu`: the GPU's ordinal. `library`: the shared library of NVIDIA's driver."""

class Block:
    """One allocation, always mapped whole. Views that map it don't need the block any more."""

    @property
    def num_bytes(self) -> int: ...
    @property
    def is_sealed(self) -> bool:
        """Whether it can't be filled any more. Imported blocks are always sealed."""
    @property
    def is_write_sealed(self) -> bool:
        """Whether the kernel itself refuses every write, from any process."""
    def fill(self, offset: int, source_address: int, num_bytes: int) -> None:
        """Copy into the block at `offset`. Threads may fill disjoint ranges at the same time."""
    def seal(self) -> None:
        """End the filling. To be called once, before the block is exported or mapped."""
    def export_handle(self, type: HandleType) -> int | bytes:
        """Return a descriptor, which the caller must close, or the bytes of a fabric handle.

        The descriptor is closed on exec; that of a memory file is read-only.
        """

class SlotPage:
    """Memory that copies write through its address, and several views show read-only."""

    @property
    def address(self) -> int:
        """The address at which copies write."""
    @property
    def num_bytes(self) -> int: ...

class View:
    """An address range that shows blocks, slot pages and private pages side by side."""

    @property
    def address(self) -> int:
        """The first address: on a 2 MiB boundary, and the same for the view's life."""
    @property
    def num_bytes(self) -> int: ...
    @property
    def num_maps(self) -> int:
        """The number of mappings. Adjacent private ranges count as one."""
    @property
    def is_finished(self) -> bool: ...
    def map_block(self, offset: int, block: Block) -> None:
        """Map a sealed block, at the view offset for which it was made."""
    def map_slot_page(self, offset: int, page: SlotPage) -> None: ...
    def map_private(self, offset: int, num_bytes: int) -> None:
        """Map zeroed pages of this process, which may be filled until `finish`."""
    def fill_private(self, offset: int, source_address: int, num_bytes: int) -> None: ...
    def finish(self) -> None:
        """Make the view read-only for good, and fill its page tables.

        A view with holes is refused. Host memory is also left out of core dumps.
        """
    def bytes_tensor(self) -> Any:
        """Return a uint8 [num_bytes] array for `torch.from_dlpack`, on the driver's device.

        The view must be finished. Tensors that are made of the array keep the mappings alive.
        Writing to such a tensor kills the process on the CPU (SIGSEGV) and the context on a GPU.
        """

CopyTuple = tuple[int, int, int]
"""(destination address, source address, number of bytes)."""

class CopyList:
    """Copies in rounds. Rounds run one after the other, the copies of one round in any order.

    The copies write to `pages` and read from `views`. Both stay mapped until the list is gone and
    its copies have ended.
    """

    def __init__(
        self,
        rounds: list[list[CopyTuple]],
        pages: Sequence[SlotPage] = ...,
        views: Sequence[View] = ...,
        *,
        layer: int = -1,
        peers: Sequence[int] = ...,
    ) -> None:
        """`layer`: the MoE layer whose experts are copied, for `CopyProgress`; -1: none.

        `peers`: for recordings, by copy, the peer whose memory it reads; empty for none.
        """

class CopyProgress:
    """How far the copies of a list have come."""

    @property
    def ticket(self) -> int: ...
    @property
    def layer(self) -> int:
        """The `layer` of the list."""
    @property
    def has_begun(self) -> bool: ...
    @property
    def num_ended(self) -> int:
        """So many of the list's copies have ended, on a GPU perhaps some more.

        Those of one round end in any order.
        """

class CopySpan:
    """Copies of one list from one peer that ran between two times.

    Times are those of `time.perf_counter_ns`. Other peers' copies may have run in between, so the
    copies themselves took `busy_ns`.
    """

    @property
    def ticket(self) -> int: ...
    @property
    def layer(self) -> int:
        """The `layer` of the list."""
    @property
    def peer(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def num_copies(self) -> int: ...
    @property
    def begin_ns(self) -> int: ...
    @property
    def end_ns(self) -> int: ...
    @property
    def busy_ns(self) -> int: ...

class CopyRecording:
    """What a copier has recorded."""

    @property
    def marks_ns(self) -> list[int]:
        """By the number of a mark, when it was passed, by `time.perf_counter_ns`."""
    @property
    def copies(self) -> list[CopySpan]: ...
    @property
    def num_dropped_bytes(self) -> int:
        """Bytes of copies for which there was no room."""

class Copier:
    """Runs copy lists one after the other, in the order of their submission. Abstract.

    `stream` is the handle of the CUDA stream whose kernels read the destinations; 0 where the CPU
    reads them.
    """

    def submit(self, copies: CopyList, stream: int = 0) -> int:
        """Enqueue a list and return its ticket, without waiting for copies.

        They start after those of all lists submitted before, and after the work enqueued in
        `stream` so far. Raises DriverError if a GPU's `stream` is under graph capture, or if the
        driver refuses a copy.
        """
    def cancel(self, ticket: int) -> None:
        """Drop the rounds that have not begun; `wait` still waits for the others. Not on GPUs."""
    def wait(self, ticket: int, stream: int = 0) -> None:
        """Make the work that is enqueued in `stream` from now on wait for the copies.

        On the host it blocks until the copies have ended. Releases the GIL.
        """
    def is_done(self, ticket: int) -> bool: ...
    def drain(self) -> None:
        """Return when the copies of all submitted lists have ended. Releases the GIL."""
    def first_under_way(self) -> CopyProgress | None:
        """The progress of the first list whose copies haven't all ended, or None.

        Any thread may call it at any time.
        """
    def start_recording(self, *, max_marks: int, max_spans: int) -> None:
        """Record marks, and copies of lists that are submitted from now on; forget earlier ones.

        The thread that submits lists makes this and the next calls. On a GPU it waits for copies
        under way.
        """
    def mark(self, stream: int = 0) -> int:
        """Mark the point that the work enqueued in `stream` has reached; returns the mark's number.

        On the host this is the present. Returns -1 under graph capture, if there is no room, and if
        nothing is recorded.
        """
    def end_recording(self) -> None:
        """Record no more marks, and no lists that are submitted from now on."""
    def take_recording(self) -> CopyRecording:
        """End the recording, wait for its copies and marks, and return it. Releases the GIL."""

class HostCopier(Copier):
    """Copies host memory in threads of its own."""

    def __init__(self, *, num_threads: int = 1, cores: list[int] = ...) -> None:
        """`cores`: where its threads may run; if empty, on the cores of the calling thread."""

class CudaCopier(Copier):
    """Copies in a stream of its own on one GPU. Events order it with other streams.

    It refuses streams under graph capture. Only one thread may use it; others may call
    `first_under_way`.
    """

    def __init__(
        self,
        driver: CudaDriver,
        *,
        use_batches: bool = False,
        prefer_overlap: bool = True,
        high_priority: bool = True,
    ) -> None:
        """`use_batches`: submit a round by one call, where the driver can (CUDA 12.8).

        `prefer_overlap`: in batches, ask for the copy engine inside one GPU, too. `high_priority`:
        give the stream the highest priority instead of the lowest.
        """
    @property
    def uses_batches(self) -> bool: ...

class ChosenExperts:
    """Copies the chosen experts that the rank lacks to the slot of one layer, on the host.

    It remembers which experts the slot holds.
    """

    def __init__(
        self, copier: Copier, experts: list[list[tuple[int, int, int, int]]], num_peers: int
    ) -> None:
        """`experts`: for each expert its copies; none if the rank has the expert.

        A copy is (index of the peer, destination address, source address, number of bytes).
        """
    def fetch(self, ids_address: int, num_ids: int, id_bytes: int) -> tuple[list[int], int, int]:
        """Copy the chosen experts that the slot doesn't hold yet, and wait. Releases the GIL.

        `ids_address`: the address of a dense array of expert indices, int32 or int64; negative ones
        are padding. Returns the bytes read from each peer, the number of copies, and the number of
        chosen experts that the slot held already.
        """
    def forget(self) -> None:
        """To be called when another layer uses the slot: all experts count as missing again."""
