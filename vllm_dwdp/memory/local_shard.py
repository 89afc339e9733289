# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""This rank's own experts, moved out of torch's memory into blocks and a fringe.

* Everything is sealed before a peer sees it; nothing can write to it afterwards.
* Layers are adopted in order, one at a time: peak memory is the shard plus one layer.
* Handles are given out per layer; the fringe stands behind the last layer.
"""

from collections.abc import Sequence

from vllm_dwdp._core import Block, HandleType, MemoryDriver
from vllm_dwdp.handle import Handle, export_all
from vllm_dwdp.layout import Extent, FringeLayout, LayerLayout, TensorLayout


class LocalShard:
    def __init__(self, driver: MemoryDriver, layers: Sequence[LayerLayout], rank: int) -> None:
        self._driver = driver
        self._layers = layers
        self._rank = rank
        self._blocks: list[tuple[Block, ...]] = []
        self._fringe_layout = FringeLayout.make(layers, rank=rank, granularity=driver.granularity)
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
        """Copy the next layer's local rows out of memory at `addresses`, one per tensor.

        An address is that of the first local expert's row; rows are dense, in expert order.
        """
        layer_idx = len(self._blocks)
        blocks: list[Block] = []
        for tensor_idx, layout in enumerate(self._layers[layer_idx]):
            base = addresses[tensor_idx] - self._first_row(layout)
            blocks.extend(self._fill_block(extent, base) for extent in layout.blocks_of(self._rank))
            self._fill_fringe(layer_idx, tensor_idx, base)
        self._blocks.append(tuple(blocks))

    def seal(self) -> None:
        """Seal the fringe, after the last layer."""
        if self._fringe is not None:
            self._fringe.seal()

    def handles(self, handle_type: HandleType, layer_idx: int) -> list[tuple[Handle, int]]:
        """(handle, bytes) of each block of a layer; index `num_layers` is the fringe.

        The caller owns them.
        """
        if layer_idx < len(self._blocks):
            blocks = self._blocks[layer_idx]
        else:
            blocks = () if self._fringe is None else (self._fringe,)
        return export_all(blocks, handle_type)

    def _create_fringe(self) -> Block | None:
        num_bytes = self._fringe_layout.num_bytes
        return self._driver.create_block(num_bytes) if num_bytes else None

    def _first_row(self, layout: TensorLayout) -> int:
        return layout.placement.ranges[self._rank][0] * layout.tensor.expert_bytes

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


def block_sizes(layers: Sequence[LayerLayout], rank: int, granularity: int) -> list[list[int]]:
    """Bytes of the blocks that `rank` exports, per layer; last, its fringe.

    What a peer must send is known beforehand: every rank computes the same layouts.
    """
    sizes = [
        [extent.num_bytes for layout in layer for extent in layout.blocks_of(rank)]
        for layer in layers
    ]
    fringe = FringeLayout.make(layers, rank=rank, granularity=granularity).num_bytes
    return [*sizes, [fringe] if fringe else []]
