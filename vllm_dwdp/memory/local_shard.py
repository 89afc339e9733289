# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""This rank's own experts, moved out of torch's memory into blocks and a fringe.

* A block or fringe is sealed before a peer sees it; nothing can write to it afterwards.
* Layers are adopted in order, one at a time: peak memory is the shard plus one layer.
* Handles are given out by parcels, see layout/rank_layout.py.
"""

from collections.abc import Sequence

from vllm_dwdp._core import Block, HandleType, MemoryDriver
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.layout.tensors import Extent, TensorLayout
from vllm_dwdp.memory.handle import Handle, export_all


class LocalShard:
    """Adopts a rank's own experts, layer by layer, and hands out handles of their memory."""

    def __init__(self, driver: MemoryDriver, layout: RankLayout) -> None:
        self._driver = driver
        self._layout = layout
        self._blocks: list[tuple[Block, ...]] = []
        self._fringe_layout = layout.fringe(layout.rank)
        self._fringe = self._create_fringe()

    @property
    def num_block_bytes(self) -> int:
        """Bytes of exported memory that this rank holds for the group."""
        fringe = self._fringe.num_bytes if self._fringe else 0
        return fringe + sum(block.num_bytes for layer in self._blocks for block in layer)

    @property
    def fringe(self) -> Block | None:
        return self._fringe

    def blocks(self, layer_idx: int) -> tuple[Block, ...]:
        return self._blocks[layer_idx]

    def adopt_layer(self, addresses: Sequence[int]) -> None:
        """Copy this rank's rows of the next layer into blocks and the fringe.

        addresses: for each expert tensor, where the row of this rank's first expert is; the rows of
        its other experts follow densely, in expert order.
        """
        layer_idx = len(self._blocks)
        blocks: list[Block] = []
        for tensor_idx, layout in enumerate(self._layout.layouts[layer_idx]):
            base = addresses[tensor_idx] - self._first_row(layout)
            extents = layout.blocks_of(self._layout.rank)
            blocks.extend(self._fill_block(extent, base) for extent in extents)
            self._fill_fringe(layer_idx, tensor_idx, base)
        self._blocks.append(tuple(blocks))

    def seal(self) -> None:
        """Seal the fringe, after the last layer."""
        if self._fringe is not None:
            self._fringe.seal()

    def handles(self, handle_type: HandleType, parcel: int) -> list[tuple[Handle, int]]:
        """(handle, bytes) of each block of a parcel; the caller owns the handles."""
        blocks: tuple[Block, ...]
        if parcel == self._layout.fringe_parcel:
            blocks = () if self._fringe is None else (self._fringe,)
        else:
            blocks = self._blocks[parcel]
        return export_all(blocks, handle_type)

    def _create_fringe(self) -> Block | None:
        num_bytes = self._fringe_layout.num_bytes
        return self._driver.create_block(num_bytes) if num_bytes else None

    def _first_row(self, layout: TensorLayout) -> int:
        return layout.placement.ranges[self._layout.rank][0] * layout.tensor.expert_bytes

    def _fill_block(self, extent: Extent, base: int) -> Block:
        on_host = extent.segment.on_host
        block = self._driver.create_block(extent.num_bytes, extent.start, on_host=on_host)
        block.fill(0, base + extent.start, extent.num_bytes)
        block.seal()
        return block

    def _fill_fringe(self, layer_idx: int, tensor_idx: int, base: int) -> None:
        for piece in self._fringe_layout.by_tensor.get((layer_idx, tensor_idx), ()):
            assert self._fringe is not None, "a fringe piece without a fringe"
            self._fringe.fill(piece.offset, base + piece.extent.start, piece.extent.num_bytes)
