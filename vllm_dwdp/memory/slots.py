# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The slots of one rank: pages that copies write, and the copies that fill them, layer by layer.

Copies read the blocks of peers and of the host through the direct views, and write a page through
another mapping of it. Nothing is ever written through a view.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from vllm_dwdp._core import CopyList, MemoryDriver, SlotPage, View
from vllm_dwdp.layout.copies import CopyPlan, Slice, expert_slices
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.slots import SlotPiece

Copy = tuple[int, int, int]
"""(destination address, source address, bytes)."""

Chosen = TypeVar("Chosen")
PeerCopy = tuple[int, int, int, int]
"""(peer, destination address, source address, bytes)."""

MakeChosen = Callable[[list[list[PeerCopy]]], Chosen]
"""(by expert index, the expert's copies) -> an object that copies the experts the router chose."""


@dataclass(frozen=True)
class LayerCopies(Generic[Chosen]):
    """The copies of one layer: of `everything` that it lacks, or of the experts that are `chosen`.

    chosen: None where no step is `selective`, because its tables take long to make.
    bytes_by_peer: bytes of `everything`, by the rank that is read.
    slices: (rank that is read, bytes) of each copy of `everything`, in order.
    """

    everything: CopyList
    chosen: Chosen | None
    bytes_by_peer: tuple[int, ...]
    slices: tuple[tuple[int, int], ...]

    @cached_property
    def num_slices(self) -> int:
        return len(self.slices)


class Slots:
    """Allocates the pages of all slots, and gives each layer its pages and copies."""

    def __init__(
        self,
        driver: MemoryDriver,
        layout: RankLayout,
        *,
        slice_bytes: int,
    ) -> None:
        self._layout = layout
        self._slice_bytes = slice_bytes
        self.num_slots = layout.num_slots
        self._layouts = [layout.slot_layout(slot) for slot in range(layout.num_slots)]
        self._pages = [
            [driver.create_slot_page(page.num_bytes, page.view_offset) for page in layout.pages]
            for layout in self._layouts
        ]

    @property
    def num_bytes(self) -> int:
        return sum(layout.num_bytes for layout in self._layouts)

    @property
    def num_maps(self) -> int:
        """Mappings that the views on slots take, in addition to those of the direct views."""
        return sum(
            len(self._pieces(layer_idx))
            + sum(1 for _ in self._layout.resident_blocks(layer_idx))
            + sum(len(t.private_spans) for t in tensors)
            for layer_idx, tensors in enumerate(self._layout.layouts)
        )

    def pages(self, layer_idx: int, tensor_idx: int) -> list[tuple[int, SlotPage]]:
        """(offset in the view, page) of each page of the slot that a layer's tensor shows."""
        pages = self._pages[self._layout.slot_of(layer_idx)]
        return [
            (piece.view_offset, pages[piece.page_idx])
            for piece in self._pieces(layer_idx)
            if piece.tensor_idx == tensor_idx
        ]

    def copies(
        self,
        layer_idx: int,
        direct: Sequence[View],
        make_chosen: MakeChosen[Chosen] | None = None,
    ) -> LayerCopies[Chosen]:
        """The copies of the experts that a layer lacks; `direct` are the layer's direct views."""
        num_ranks = self._layout.num_ranks
        plan = CopyPlan.make(
            self._pieces(layer_idx),
            rank=self._layout.rank,
            num_ranks=num_ranks,
            slice_bytes=self._slice_bytes,
        )
        chosen = None
        if make_chosen is not None:
            chosen = make_chosen(self._expert_copies(layer_idx, direct))
        return LayerCopies(
            everything=CopyList(
                [[self._copy(layer_idx, s, direct) for s in one] for one in plan.rounds],
                self._pages[self._layout.slot_of(layer_idx)],
                direct,
                layer=layer_idx,
                peers=[s.peer for s in plan.slices],
            ),
            chosen=chosen,
            bytes_by_peer=tuple(plan.bytes_by_peer(num_ranks)),
            slices=tuple((s.peer, s.num_bytes) for s in plan.slices),
        )

    def _expert_copies(self, layer_idx: int, direct: Sequence[View]) -> list[list[PeerCopy]]:
        """By expert index, the copies that bring the expert; none if it is resident."""
        tensors, pieces = self._layout.layouts[layer_idx], self._pieces(layer_idx)
        return [
            [
                (s.peer, *self._copy(layer_idx, s, direct))
                for s in expert_slices(tensors, pieces, expert)
            ]
            for expert in range(tensors[0].placement.num_experts)
        ]

    def _pieces(self, layer_idx: int) -> Sequence[SlotPiece]:
        return self._layouts[self._layout.slot_of(layer_idx)].pieces[layer_idx]

    def _copy(self, layer_idx: int, s: Slice, direct: Sequence[View]) -> Copy:
        page = self._pages[self._layout.slot_of(layer_idx)][s.page_idx]
        source = direct[s.tensor_idx].address + s.view_offset
        return page.address + s.page_offset, source, s.num_bytes
