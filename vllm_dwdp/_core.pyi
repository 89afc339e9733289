# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The compiled core (csrc/module.cc).

Sizes, offsets and addresses are bytes. Blocks, views and their offsets are whole pages of the
driver's granularity; nothing may be empty. `fill`, `fill_private`, `seal` and `finish` release
the GIL. What is refused raises DriverError and leaves the object as it was.
"""

import enum
from collections.abc import Sequence
from typing import Any

class DriverError(RuntimeError):
    """One sentence: what was expected, what came, what to do."""

class OutOfResources(DriverError):
    """This process, its host or its GPU has no memory, addresses, mappings or descriptors left."""

class HandleType(enum.Enum):
    """How one process names memory to another."""

    FILE_DESCRIPTOR = ...
    """An int, on one host."""
    FABRIC = ...
    """64 bytes (CUmemFabricHandle), between the hosts of one NVLink domain."""

class MemoryDriver:
    """A kind of memory. Abstract: make one of its subclasses."""

    @property
    def kind(self) -> str:
        """What the memory is, for peers to compare: "host" or "cuda"."""
    @property
    def granularity(self) -> int:
        """Bytes of a page."""
    @property
    def obstacles(self) -> dict[HandleType, str | None]:
        """Why memory can't be shared by each type that this kind knows; None: it can."""
    @property
    def warnings(self) -> list[str]:
        """What went less well than asked, once each."""
    def copy(self, destination_address: int, source_address: int, num_bytes: int) -> None:
        """Done when it returns; for start-up. Releases the GIL."""
    def create_block(self, num_bytes: int, view_offset: int = 0, *, on_host: bool = False) -> Block:
        """An open block of zeroes, to be mapped at `view_offset` of views."""
    def import_block(self, handle: int | bytes, num_bytes: int, view_offset: int = 0) -> Block:
        """A peer's block, sealed; size and offset must be those it was created with.

        Takes the handle: a descriptor is closed when the block goes, or at once when it is refused.
        """
    def create_slot_page(self, num_bytes: int, view_offset: int = 0) -> SlotPage:
        """Local memory for copies, zeroed; `view_offset` is where most views will map it."""
    def reserve_view(self, num_bytes: int) -> View:
        """A view without pages."""

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
        """`name` shows in /proc/PID/maps; `numa_node` is preferred for own blocks, -1: none.

        `require_write_seal`: refuse peers' blocks that their kernel could not seal.
        """

class CudaDriver(MemoryDriver):
    """Memory of one GPU, shared by file descriptors on one host, by fabric handles beyond it.

    Needs CUDA 11.3 or later, virtual memory management, and a GPU that exports either.
    """

    def __init__(self, gpu: int, library: str = "libcuda.so.1") -> None:
        """`library`: where the driver's functions are found."""

class Block:
    """One allocation, always mapped whole. Its descriptor is closed when it goes; views stay."""

    @property
    def num_bytes(self) -> int: ...
    @property
    def is_sealed(self) -> bool:
        """No longer fillable. Imported blocks always are."""
    @property
    def is_write_sealed(self) -> bool:
        """Whether the kernel itself refuses every write, from any process."""
    def fill(self, offset: int, source_address: int, num_bytes: int) -> None:
        """Copy in. Threads may fill disjoint ranges at the same time."""
    def seal(self) -> None:
        """Once, before sharing and mapping."""
    def export_handle(self, type: HandleType) -> int | bytes:
        """A descriptor, read-only where memory files can be, closed on exec, the caller's to close.

        Or the bytes of a fabric handle.
        """

class SlotPage:
    """Memory that copies write through its address, and several views show read-only."""

    @property
    def address(self) -> int:
        """The writable alias."""
    @property
    def num_bytes(self) -> int: ...

class View:
    """An address range of blocks and private pages side by side."""

    @property
    def address(self) -> int:
        """Fixed for life, at a 2 MiB boundary."""
    @property
    def num_bytes(self) -> int: ...
    @property
    def num_maps(self) -> int:
        """Mappings made; private ranges that touch count as one."""
    @property
    def is_finished(self) -> bool: ...
    def map_block(self, offset: int, block: Block) -> None:
        """Show a sealed block, at the view offset that it was made for."""
    def map_slot_page(self, offset: int, page: SlotPage) -> None: ...
    def map_private(self, offset: int, num_bytes: int) -> None:
        """Give zeroed pages of this process, to be filled before `finish`."""
    def fill_private(self, offset: int, source_address: int, num_bytes: int) -> None: ...
    def finish(self) -> None:
        """Refuses holes; then read-only for good, page tables filled, left out of core dumps."""
    def bytes_tensor(self) -> Any:
        """uint8 [num_bytes] on the driver's device for `torch.from_dlpack`; needs `finish`.

        Tensors made of it keep the mapping alive. Writing to one kills the process on the CPU
        (SIGSEGV) and the context on a GPU.
        """

CopyTuple = tuple[int, int, int]
"""(destination address, source address, bytes)."""

class CopyList:
    """Copies in rounds: those of one round in any order, rounds one after the other.

    `pages` and `views` are what they write and read: mapped until the list is gone and its copies
    have ended.
    """

    def __init__(
        self,
        rounds: list[list[CopyTuple]],
        pages: Sequence[SlotPage] = ...,
        views: Sequence[View] = ...,
        *,
        layer: int = -1,
    ) -> None:
        """`layer`: whose experts they bring, for `CopyProgress`."""

class CopyProgress:
    """How far the copies of a list have come."""

    @property
    def ticket(self) -> int: ...
    @property
    def layer(self) -> int:
        """As the list says it; -1: of no layer."""
    @property
    def has_begun(self) -> bool: ...
    @property
    def num_ended(self) -> int:
        """Of the list's copies, which end in order but for those of one round."""

class Copier:
    """Runs copy lists one after the other, in the order of their submission. Abstract.

    `stream`: the handle of the CUDA stream that reads the destinations; 0 where the CPU does.
    """

    def submit(self, copies: CopyList, stream: int = 0) -> int:
        """Start after everything submitted before, and after what `stream` has to do now.

        Returns a ticket. Never blocks.
        """
    def cancel(self, ticket: int) -> None:
        """Drop the rounds that have not begun, on the host; `wait` still waits for the others."""
    def wait(self, ticket: int, stream: int = 0) -> None:
        """What `stream` is given from now on comes after the copies; the CPU blocks instead.

        Releases the GIL.
        """
    def is_done(self, ticket: int) -> bool: ...
    def drain(self) -> None:
        """Return when no copy is under way. Releases the GIL."""
    def first_under_way(self) -> CopyProgress | None:
        """The first list whose copies haven't ended. Any thread may ask, at any time."""

class HostCopier(Copier):
    """Threads that copy host memory."""

    def __init__(self, *, num_threads: int = 1, cores: list[int] = ...) -> None:
        """`cores`: where its threads may run; none: where the calling thread may."""

class CudaCopier(Copier):
    """A stream of copies on one GPU, ordered with other streams by events.

    Refuses streams under graph capture. Used by one thread.
    """

    def __init__(
        self,
        driver: CudaDriver,
        *,
        use_batches: bool = False,
        prefer_overlap: bool = True,
        high_priority: bool = True,
    ) -> None:
        """`use_batches`: a round is one call, where the driver can (CUDA 12.8).

        `prefer_overlap`: ask for the copy engine inside one GPU, too.
        """
    @property
    def uses_batches(self) -> bool: ...

class ChosenExperts:
    """The missing experts of one layer, and which of them its slot holds now."""

    def __init__(
        self, copier: Copier, experts: list[list[tuple[int, int, int, int]]], num_peers: int
    ) -> None:
        """`experts`: by index, copies of (peer, destination, source, bytes); none: it is here."""
    def fetch(self, ids_address: int, num_ids: int, id_bytes: int) -> tuple[list[int], int, int]:
        """Copy what is missing of the chosen experts, and wait for it. Releases the GIL.

        `ids_address`: dense int32 or int64 expert indices; below 0: padding. Returns the bytes by
        peer, the number of copies, and of chosen experts that the slot held already.
        """
    def forget(self) -> None:
        """The slot holds something else now."""
