# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The compiled core (csrc/module.cc).

Sizes, offsets and addresses are bytes. Blocks, views and their offsets are whole pages of the
driver's granularity; nothing may be empty. `fill`, `fill_private`, `seal` and `finish` release
the GIL. What is refused raises DriverError and leaves the object as it was.
"""

from typing import Any

class DriverError(RuntimeError):
    """One sentence: what was expected, what came, what to do."""

class MemoryDriver:
    """A kind of memory. Abstract: make one of its subclasses."""

    @property
    def kind(self) -> str:
        """What the memory is, for peers to compare: "host" here."""
    @property
    def granularity(self) -> int:
        """Bytes of a page."""
    def create_block(self, num_bytes: int, view_offset: int = 0) -> Block:
        """An open block of zeroes, to be mapped at `view_offset` of views."""
    def import_block(self, fd: int, num_bytes: int, view_offset: int = 0) -> Block:
        """A peer's block, sealed; size and offset must be those it was created with.

        Takes the descriptor: it is closed when the block goes, or at once when it is refused.
        """
    def create_slot_page(self, num_bytes: int, view_offset: int = 0) -> SlotPage:
        """Local memory for copies; `view_offset` is where most views will map it."""
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
    @property
    def warnings(self) -> list[str]:
        """What went less well than asked, once each."""

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
    def export_fd(self) -> int:
        """A new descriptor, read-only and closed on exec, that the caller owns."""

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
        """uint8 [num_bytes] on the CPU for `torch.from_dlpack`; needs `finish`.

        Tensors made of it keep the mapping alive. Writing to one kills the process (SIGSEGV).
        """

CopyTuple = tuple[int, int, int]
"""(destination address, source address, bytes)."""

class CopyList:
    """Copies in rounds: those of one round in any order, rounds one after the other."""

    def __init__(self, rounds: list[list[CopyTuple]]) -> None: ...

class Copier:
    """Runs copy lists one after the other, in the order of their submission. Abstract."""

    def submit(self, copies: CopyList) -> int:
        """Start after everything submitted before; returns a ticket. Never blocks."""
    def cancel(self, ticket: int) -> None:
        """Drop the rounds that have not begun; `wait` still waits for the one that has."""
    def wait(self, ticket: int) -> None:
        """Until all of it is copied. Releases the GIL."""
    def is_done(self, ticket: int) -> bool: ...

class HostCopier(Copier):
    """Threads that copy host memory."""

    def __init__(self, *, num_threads: int = 1, cores: list[int] = ...) -> None:
        """`cores`: where its threads may run; none: where the calling thread may."""

class ChosenExperts:
    """The missing experts of one layer, and which of them its slot holds now."""

    def __init__(
        self, copier: Copier, experts: list[tuple[int, list[CopyTuple]]], num_peers: int
    ) -> None:
        """`experts`: by index, (peer, copies); no copies: this rank has the expert."""
    def fetch(self, ids_address: int, num_ids: int, id_bytes: int) -> tuple[list[int], int, int]:
        """Copy what is missing of the chosen experts, and wait for it. Releases the GIL.

        `ids_address`: dense int32 or int64 expert indices; below 0: padding. Returns the bytes by
        peer, the number of copies, and of chosen experts that the slot held already.
        """
    def forget(self) -> None:
        """The slot holds something else now."""
