# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""All layers of a model as one rank sees them: what it owns, and what it lacks from whom.

Ranks hand each other their memory in parcels. Parcel l holds the blocks of layer l, and the last
parcel holds the fringe.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.layout.slots import SlotLayout
from vllm_dwdp.layout.tensors import FringeLayout, LayerLayout, SourcedBlock


class BlockKey(NamedTuple):
    """Names a block: its layer, its tensor, and its first byte in the tensor's view."""

    layer_idx: int
    tensor_idx: int
    start: int


@dataclass(frozen=True)
class RankLayout:
    """The layouts of all layers, as one rank of the group sees them.

    num_slots: layer l uses slot l % num_slots; 0 for a rank without slots. only_layer: the one
    layer that has a slot; None if all layers have one. extra: the blocks that the rank lacks and
    keeps copies of, see layout/extra_experts.py.
    """

    layouts: tuple[LayerLayout, ...]
    rank: int
    num_slots: int = 0
    only_layer: int | None = None
    extra: frozenset[BlockKey] = frozenset()

    @property
    def placement(self) -> Placement:
        """The placement, which all layers of a model share."""
        return self.layouts[0][0].placement

    @property
    def granularity(self) -> int:
        """Bytes of a page, the unit in which memory is mapped."""
        return self.layouts[0][0].granularity

    @property
    def num_layers(self) -> int:
        return len(self.layouts)

    @property
    def num_ranks(self) -> int:
        """The number of ranks in the group."""
        return self.placement.dwdp_size

    @property
    def peers(self) -> list[int]:
        """The other ranks of the group."""
        return [rank for rank in range(self.num_ranks) if rank != self.rank]

    @property
    def fringe_parcel(self) -> int:
        """The number of the parcel that holds a rank's fringe."""
        return self.num_layers

    @property
    def num_parcels(self) -> int:
        return self.num_layers + 1

    def block_sizes(self, owner: int, parcel: int) -> list[int]:
        """Bytes of each block in a parcel of `owner`; every rank computes the same."""
        if parcel == self.fringe_parcel:
            fringe = self.fringe(owner).num_bytes
            return [fringe] if fringe else []
        return [e.num_bytes for layout in self.layouts[parcel] for e in layout.blocks_of(owner)]

    def fringe(self, owner: int) -> FringeLayout:
        return self._fringes[owner]

    def sourced_blocks(self, layer_idx: int) -> Iterator[SourcedBlock]:
        """All blocks of a layer, each with the rank out of whose memory this one reads it."""
        for tensor_idx, layout in enumerate(self.layouts[layer_idx]):
            for extent in layout.blocks:
                source = layout.source(extent.segment, self.rank, layer_idx, tensor_idx)
                is_extra = BlockKey(layer_idx, tensor_idx, extent.start) in self.extra
                yield SourcedBlock(tensor_idx, extent, source, is_extra)

    def missing_blocks(self, layer_idx: int) -> Iterator[SourcedBlock]:
        """The blocks of a layer that this rank reads over a link: of peers, or of its own host."""
        return (b for b in self.sourced_blocks(layer_idx) if b.is_missing(self.rank))

    def resident_blocks(self, layer_idx: int) -> Iterator[SourcedBlock]:
        """The blocks of a layer in the rank's own fast memory, which need no copy."""
        return (b for b in self.sourced_blocks(layer_idx) if not b.is_missing(self.rank))

    def missing_bytes(self, layer_idx: int) -> int:
        """Bytes of a layer's missing blocks, which copies bring; boundary pages don't count."""
        return sum(block.extent.num_bytes for block in self.missing_blocks(layer_idx))

    @property
    def all_missing_bytes(self) -> int:
        """Bytes of the missing blocks of all layers."""
        return sum(map(self.missing_bytes, range(self.num_layers)))

    def bytes_by_peer(self) -> list[int]:
        """Bytes of the missing blocks of all layers, by the rank that they are read from.

        The entry of this rank itself counts the blocks in its host's memory.
        """
        found = [0] * self.num_ranks
        for layer_idx in range(self.num_layers):
            for block in self.missing_blocks(layer_idx):
                found[block.source] += block.extent.num_bytes
        return found

    def with_slots(self, num_slots: int) -> "RankLayout":
        """This layout with another number of slots."""
        return dataclasses.replace(self, num_slots=num_slots)

    def with_slot_for(self, layer_idx: int) -> "RankLayout":
        """This layout with one slot, which one layer uses."""
        return dataclasses.replace(self, num_slots=1, only_layer=layer_idx)

    def slot_of(self, layer_idx: int) -> int:
        """The slot that a layer uses."""
        return layer_idx % self.num_slots

    def layers_of(self, slot: int) -> Sequence[int]:
        """The layers that use the slot with this number."""
        if self.only_layer is not None:
            return [self.only_layer]
        return range(slot, self.num_layers, self.num_slots)

    def slot_layout(self, slot: int) -> SlotLayout:
        """How the pages of a slot serve all of its layers."""
        return SlotLayout.make(
            {layer_idx: self.missing_blocks(layer_idx) for layer_idx in self.layers_of(slot)},
            granularity=self.granularity,
        )

    @cached_property
    def _fringes(self) -> list[FringeLayout]:
        return [
            FringeLayout.make(self.layouts, rank=owner, granularity=self.granularity)
            for owner in range(self.num_ranks)
        ]
