# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Where the experts that a rank lacks lie in a slot, by layer: pure arithmetic over bytes.

* A slot is a pool of pages of 1, 2, 4, ... times the granularity; a page is mapped whole.
* Every block that a layer reads from a peer or from the host is cut into such pages, largest first.
* Layers that share a slot use the same pages, one layer after the other. The layer with most blocks
  is laid out first. Each other one takes the largest pages that its blocks fill, and the slot gets
  more pages only where none is left.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vllm_dwdp.layout.tensors import SourcedBlock


class SlotPiece(NamedTuple):
    """A page of the slot as one layer uses it; all its bytes come from one peer.

    peer: the rank that the bytes are read from; this rank itself if they lie in its host's memory.
    """

    peer: int
    tensor_idx: int
    view_offset: int
    page_idx: int
    num_bytes: int


class PageSpec(NamedTuple):
    """A page to allocate; `view_offset` is where the first layer that uses it maps it."""

    num_bytes: int
    view_offset: int


@dataclass(frozen=True)
class SlotLayout:
    """The pages of one slot, and by layer index the pieces: how that layer uses the pages."""

    pages: tuple[PageSpec, ...]
    pieces: dict[int, tuple[SlotPiece, ...]]

    @classmethod
    def make(
        cls, missing: Mapping[int, Iterable[SourcedBlock]], *, granularity: int
    ) -> "SlotLayout":
        """Lay out one slot; missing: by layer index, the blocks that the layer lacks."""
        pages: list[PageSpec] = []
        of_layers = {layer_idx: list(blocks) for layer_idx, blocks in missing.items()}
        pieces = {
            layer_idx: tuple(_lay_out(blocks, granularity, pages))
            for layer_idx, blocks in sorted(of_layers.items(), key=lambda one: -len(one[1]))
        }
        return cls(tuple(pages), pieces)

    @property
    def num_bytes(self) -> int:
        return sum(page.num_bytes for page in self.pages)


def _lay_out(
    blocks: Iterable[SourcedBlock], granularity: int, pages: list[PageSpec]
) -> Iterator[SlotPiece]:
    free = _by_size(pages)
    for block in blocks:
        at, left = block.extent.start, block.extent.num_bytes
        while left:
            page_idx = _take(left, at, granularity, free, pages)
            num_bytes = pages[page_idx].num_bytes
            yield SlotPiece(block.source, block.tensor_idx, at, page_idx, num_bytes)
            at, left = at + num_bytes, left - num_bytes


def _by_size(pages: Sequence[PageSpec]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for idx in reversed(range(len(pages))):
        found.setdefault(pages[idx].num_bytes, []).append(idx)
    return found


def _take(
    left: int, at: int, granularity: int, free: dict[int, list[int]], pages: list[PageSpec]
) -> int:
    """The largest free page that `left` bytes fill; a new one if there is none."""
    if fitting := [size for size, same in free.items() if same and size <= left]:
        return free[max(fitting)].pop()
    pages.append(PageSpec(granularity << ((left // granularity).bit_length() - 1), at))
    return len(pages) - 1
