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
    def map_private(self, offset: int, num_bytes: int) -> None:
        """Give zeroed pages of this process, to be filled before `finish`."""
    def fill_private(self, offset: int, source_address: int, num_bytes: int) -> None: ...
    def finish(self) -> None:
        """Refuses holes; then read-only for good, page tables filled, left out of core dumps."""
    def bytes_tensor(self) -> Any:
        """uint8 [num_bytes] on the CPU for `torch.from_dlpack`; needs `finish`.

        Tensors made of it keep the mapping alive. Writing to one kills the process (SIGSEGV).
        """
