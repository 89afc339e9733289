# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Views of whole expert tensors, stitched from own blocks, peers' blocks and boundary pages.

* A view shows `[num_experts, ...]` read-only; its address is fixed for the process's life.
* Peers' handles are taken, mapped and closed one layer at a time.
* Boundary pages are filled here, once, from the fringes of all owners.
"""

from collections.abc import Callable, Sequence

from vllm_dwdp._core import Block, MemoryDriver, View
from vllm_dwdp.layout.tensors import Extent, FringeLayout, FringePiece, LayerLayout, TensorLayout
from vllm_dwdp.memory.handle import Handle, import_all
from vllm_dwdp.memory.local_shard import LocalShard, block_sizes
from vllm_dwdp.memory.slots import Slots

PullHandles = Callable[[int, int, Sequence[int]], Sequence[Handle]]
"""(peer rank, layer index, expected bytes of each) -> handles, owned by the caller."""


class ExpertViews:
    """Builds the views of one rank, layer by layer, in order."""

    def __init__(
        self,
        driver: MemoryDriver,
        layers: Sequence[LayerLayout],
        shard: LocalShard,
        rank: int,
        pull: PullHandles,
    ) -> None:
        self._driver = driver
        self._layers = layers
        self._shard = shard
        self._rank = rank
        self._pull = pull
        self._ranks = range(layers[0][0].placement.dwdp_size)
        self._peers = [peer for peer in self._ranks if peer != rank]
        self._sizes = {p: block_sizes(layers, p, driver.granularity) for p in self._peers}
        self._fringe_layouts = {
            r: FringeLayout.make(layers, rank=r, granularity=driver.granularity)
            for r in self._ranks
        }
        self._fringes = self._map_fringes()
        self.num_maps = 0
        self.num_peer_bytes = 0
        self.num_private_bytes = 0

    def build(self, layer_idx: int) -> list[View]:
        """Views of peers' memory where it lies: those of one layer, one per expert tensor."""
        blocks = self._blocks_by_extent(layer_idx)
        views = []
        for tensor_idx, layout in enumerate(self._layers[layer_idx]):
            view = self._driver.reserve_view(layout.view_bytes)
            for extent in layout.blocks:
                source = layout.source(extent.segment, self._rank, layer_idx, tensor_idx)
                view.map_block(extent.start, blocks[source, tensor_idx, extent])
                self.num_peer_bytes += extent.num_bytes if source != self._rank else 0
            views.append(self._finish(view, layer_idx, tensor_idx, layout))
        return views

    def build_on_slot(self, layer_idx: int, slots: Slots) -> list[View]:
        """Views of the layer's slot where `build` shows peers' memory."""
        own = dict(
            zip(self._keys(layer_idx, self._rank), self._shard.blocks(layer_idx), strict=True)
        )
        views = []
        for tensor_idx, layout in enumerate(self._layers[layer_idx]):
            view = self._driver.reserve_view(layout.view_bytes)
            for extent in layout.resident_blocks_of(self._rank):
                view.map_block(extent.start, own[self._rank, tensor_idx, extent])
            for offset, page in slots.pages(layer_idx, tensor_idx):
                view.map_slot_page(offset, page)
            views.append(self._finish(view, layer_idx, tensor_idx, layout))
        return views

    def forget(self, layer_idx: int, views: Sequence[View]) -> None:
        """These views of a layer go again, and don't count any more."""
        for view, layout in zip(views, self._layers[layer_idx], strict=True):
            self.num_maps -= view.num_maps
            self.num_private_bytes -= sum(span.num_bytes for span in layout.private_spans)

    def _finish(self, view: View, layer_idx: int, tensor_idx: int, layout: TensorLayout) -> View:
        for span in layout.private_spans:
            view.map_private(span.start, span.num_bytes)
            self.num_private_bytes += span.num_bytes
        self._fill_boundaries(view, layer_idx, tensor_idx, layout)
        view.finish()
        self.num_maps += view.num_maps
        return view

    def _fill_boundaries(
        self, view: View, layer_idx: int, tensor_idx: int, layout: TensorLayout
    ) -> None:
        for owner in self._ranks:
            for piece in self._fringe_layouts[owner].by_tensor.get((layer_idx, tensor_idx), ()):
                if layout.source(piece.extent.segment, self._rank, layer_idx, tensor_idx) == owner:
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
            fringes[self._rank] = self._shard.fringe
        for peer in self._peers:
            fringes.update((peer, block) for block in self._import(peer, len(self._layers), [0]))
        return {owner: self._view_of(block) for owner, block in fringes.items()}

    def _view_of(self, block: Block) -> View:
        view = self._driver.reserve_view(block.num_bytes)
        view.map_block(0, block)
        view.finish()
        return view

    def _blocks_by_extent(self, layer_idx: int) -> dict[tuple[int, int, Extent], Block]:
        """Own and peers' blocks of a layer by (owner, tensor index, extent)."""
        own = self._shard.blocks(layer_idx)
        found = dict(zip(self._keys(layer_idx, self._rank), own, strict=True))
        for peer in self._peers:
            keys = self._keys(layer_idx, peer)
            blocks = self._import(peer, layer_idx, [extent.start for _, _, extent in keys])
            found.update(zip(keys, blocks, strict=True))
        return found

    def _keys(self, layer_idx: int, owner: int) -> list[tuple[int, int, Extent]]:
        return [
            (owner, tensor_idx, extent)
            for tensor_idx, layout in enumerate(self._layers[layer_idx])
            for extent in layout.blocks_of(owner)
        ]

    def _import(self, peer: int, layer_idx: int, starts: Sequence[int]) -> list[Block]:
        """Import a peer's blocks of a layer; `starts` are their places in the views."""
        sizes = self._sizes[peer][layer_idx]
        if not sizes:
            return []
        handles = self._pull(peer, layer_idx, sizes)
        return import_all(self._driver, handles, sizes, starts)
