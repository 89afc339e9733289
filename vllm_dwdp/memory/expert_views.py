# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Views of whole expert tensors, stitched from own blocks, peers' blocks and boundary pages.

* A view shows `[num_experts, ...]` read-only; its address is fixed for the process's life.
* Peers' handles are taken, mapped and closed one layer at a time.
* Boundary pages are filled here, once, from the fringes of all owners.
* Copies of extra experts are made here, once, and shown in the place of their owners' memory.
"""

from collections.abc import Callable, Sequence

from vllm_dwdp._core import Block, MemoryDriver, View
from vllm_dwdp.layout.rank_layout import BlockKey, RankLayout
from vllm_dwdp.layout.tensors import Extent, FringePiece, SourcedBlock, TensorLayout
from vllm_dwdp.memory.handle import Handle, import_all
from vllm_dwdp.memory.local_shard import LocalShard
from vllm_dwdp.memory.slots import Slots

TakeHandles = Callable[[int, int, Sequence[int]], Sequence[Handle]]
"""(peer, parcel, expected bytes of each block) -> the blocks' handles, owned by the caller."""


Blocks = dict[tuple[int, int, Extent], Block]
"""Blocks of a layer by (owner, tensor index, extent)."""


class ExpertViews:
    """Builds the views of one rank, layer by layer, in order."""

    def __init__(
        self,
        driver: MemoryDriver,
        layout: RankLayout,
        shard: LocalShard,
        take_handles: TakeHandles,
    ) -> None:
        self._driver = driver
        self._layout = layout
        self._shard = shard
        self._take_handles = take_handles
        self._fringes = self._map_fringes()
        self.num_maps = 0
        self.num_peer_bytes = 0
        self.num_private_bytes = 0
        self.num_extra_bytes = 0
        self._extra: dict[BlockKey, Block] = {}

    def build(self, layer_idx: int) -> list[View]:
        """The direct views of a layer, one per expert tensor: they show peers' memory in place.

        They show this rank's copies of extra experts.
        """
        blocks = self._blocks_by_extent(layer_idx)
        views = self._map(layer_idx, blocks)
        if any(block.is_extra for block in self._layout.sourced_blocks(layer_idx)):
            self._copy_extra(layer_idx, views)
            self.forget(layer_idx, views)
            views = self._map(layer_idx, blocks)
        self.num_peer_bytes += sum(
            block.extent.num_bytes
            for block in self._layout.missing_blocks(layer_idx)
            if block.source != self._layout.rank
        )
        return views

    def build_on_slot(self, layer_idx: int, slots: Slots) -> list[View]:
        """Views of a layer, one per expert tensor, with its slot in the place of peers' memory."""
        rank = self._layout.rank
        own = dict(zip(self._keys(layer_idx, rank), self._shard.blocks(layer_idx), strict=True))
        views = [self._driver.reserve_view(t.view_bytes) for t in self._layout.layouts[layer_idx]]
        for resident in self._layout.resident_blocks(layer_idx):
            block = self._block(layer_idx, resident, own)
            views[resident.tensor_idx].map_block(resident.extent.start, block)
        for tensor_idx, view in enumerate(views):
            for offset, page in slots.pages(layer_idx, tensor_idx):
                view.map_slot_page(offset, page)
        return self._finish(views, layer_idx)

    def forget(self, layer_idx: int, views: Sequence[View]) -> None:
        """Stop counting these views of a layer, because the caller drops them."""
        for view, layout in zip(views, self._layout.layouts[layer_idx], strict=True):
            self.num_maps -= view.num_maps
            self.num_private_bytes -= sum(span.num_bytes for span in layout.private_spans)

    def _map(self, layer_idx: int, blocks: Blocks) -> list[View]:
        """Views of a layer that show its blocks in place, and the copies that there are by now."""
        views = [self._driver.reserve_view(t.view_bytes) for t in self._layout.layouts[layer_idx]]
        for sourced in self._layout.sourced_blocks(layer_idx):
            block = self._block(layer_idx, sourced, blocks)
            views[sourced.tensor_idx].map_block(sourced.extent.start, block)
        return self._finish(views, layer_idx)

    def _block(self, layer_idx: int, sourced: SourcedBlock, blocks: Blocks) -> Block:
        """This rank's copy of a block if there is one, else the owner's."""
        tensor_idx, extent, source, _ = sourced
        copied = self._extra.get(BlockKey(layer_idx, tensor_idx, extent.start))
        return copied or blocks[source, tensor_idx, extent]

    def _copy_extra(self, layer_idx: int, views: Sequence[View]) -> None:
        """Copy the extra experts of a layer out of its finished views, which show the owners'."""
        for tensor_idx, extent, _, is_extra in self._layout.sourced_blocks(layer_idx):
            if is_extra:
                block = self._driver.create_block(extent.num_bytes, extent.start)
                block.fill(0, views[tensor_idx].address + extent.start, extent.num_bytes)
                block.seal()
                self._extra[BlockKey(layer_idx, tensor_idx, extent.start)] = block
                self.num_extra_bytes += extent.num_bytes

    def _finish(self, views: list[View], layer_idx: int) -> list[View]:
        """Add the boundary pages to a layer's views, whose blocks are mapped, and finish them."""
        for tensor_idx, layout in enumerate(self._layout.layouts[layer_idx]):
            view = views[tensor_idx]
            for span in layout.private_spans:
                view.map_private(span.start, span.num_bytes)
                self.num_private_bytes += span.num_bytes
            self._fill_boundaries(view, layer_idx, tensor_idx, layout)
            view.finish()
            self.num_maps += view.num_maps
        return views

    def _fill_boundaries(
        self, view: View, layer_idx: int, tensor_idx: int, layout: TensorLayout
    ) -> None:
        rank = self._layout.rank
        for owner in range(self._layout.num_ranks):
            for piece in self._layout.fringe(owner).by_tensor.get((layer_idx, tensor_idx), ()):
                if layout.source(piece.extent.segment, rank, layer_idx, tensor_idx) == owner:
                    view.fill_private(
                        piece.extent.start,
                        self._fringe_address(owner, piece),
                        piece.extent.num_bytes,
                    )

    def _fringe_address(self, owner: int, piece: FringePiece) -> int:
        return self._fringes[owner].address + piece.offset

    def _map_fringes(self) -> dict[int, View]:
        fringes: dict[int, Block] = {}
        if self._shard.fringe is not None:
            fringes[self._layout.rank] = self._shard.fringe
        for peer in self._layout.peers:
            blocks = self._import(peer, self._layout.fringe_parcel, [0])
            fringes.update((peer, block) for block in blocks)
        return {owner: self._view_of(block) for owner, block in fringes.items()}

    def _view_of(self, block: Block) -> View:
        view = self._driver.reserve_view(block.num_bytes)
        view.map_block(0, block)
        view.finish()
        return view

    def _blocks_by_extent(self, layer_idx: int) -> Blocks:
        """Own and peers' blocks of a layer."""
        own = self._shard.blocks(layer_idx)
        found = dict(zip(self._keys(layer_idx, self._layout.rank), own, strict=True))
        for peer in self._layout.peers:
            keys = self._keys(layer_idx, peer)
            blocks = self._import(peer, layer_idx, [extent.start for _, _, extent in keys])
            found.update(zip(keys, blocks, strict=True))
        return found

    def _keys(self, layer_idx: int, owner: int) -> list[tuple[int, int, Extent]]:
        return [
            (owner, tensor_idx, extent)
            for tensor_idx, layout in enumerate(self._layout.layouts[layer_idx])
            for extent in layout.blocks_of(owner)
        ]

    def _import(self, peer: int, parcel: int, starts: Sequence[int]) -> list[Block]:
        """Import the blocks of a peer's parcel; `starts` are their places in the views."""
        sizes = self._layout.block_sizes(peer, parcel)
        if not sizes:
            return []
        handles = self._take_handles(peer, parcel, sizes)
        return import_all(self._driver, handles, sizes, starts)
