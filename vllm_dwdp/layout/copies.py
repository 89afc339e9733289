# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A layer's copy plan: which bytes go into its slot, from which peer and in which order.

The plan is pure arithmetic, and is made once for each layer.

* A plan covers every byte of the slot's pieces once.
* A plan runs in rounds of at most `slice_bytes` per peer. The driver may take a whole round in one
  batched copy, and the order inside a batched copy is not defined.
* Each round begins with the rank's right neighbour, so that ranks in step don't all read the same
  peer. The rank's own host memory comes last.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from vllm_dwdp.layout.slots import SlotPiece
from vllm_dwdp.layout.tensors import LayerLayout

MIN_GPU_SLICE_BYTES = 16 << 20
MAX_GPU_SLICE_BYTES = 64 << 20
MIN_TURNS = 8


def gpu_slice_bytes(peer_bytes: int) -> int:
    """How many bytes a GPU copies from one peer before it turns to the next, a power of two.

    peer_bytes: what a layer reads from one peer. The figures are estimates, for NVLink.

    * An eighth of `peer_bytes`: two ranks that read the same peer at the same time do so for one
      slice only, and eight turns spread the ranks over the peers within a layer.
    * At least 16 MiB: copying them takes 45 us at 370 GB/s, many times the host's time for the
      call.
    * At most 64 MiB: a rank lacks 9.9 GB of a layer of DeepSeek-R1 on 8 GPUs, which takes 147
      calls. Larger slices would save the host little time.
    """
    wanted = max(1, peer_bytes // MIN_TURNS)
    power = 1 << (wanted.bit_length() - 1)
    return min(max(power, MIN_GPU_SLICE_BYTES), MAX_GPU_SLICE_BYTES)


class Slice(NamedTuple):
    """One copy, from a block of a peer or of the host into a page of the slot.

    view_offset: where the tensor's direct view shows the bytes. page_offset: where they go in the
    page.
    """

    peer: int
    tensor_idx: int
    view_offset: int
    page_idx: int
    page_offset: int
    num_bytes: int


@dataclass(frozen=True)
class CopyPlan:
    """The copies of everything that a layer lacks; each of `rounds` ends before the next begins."""

    rounds: tuple[tuple[Slice, ...], ...]

    @classmethod
    def make(
        cls, pieces: Iterable[SlotPiece], *, rank: int, num_ranks: int, slice_bytes: int
    ) -> "CopyPlan":
        queues: list[list[Slice]] = [[] for _ in range(num_ranks)]
        for piece in pieces:
            queues[piece.peer].extend(_cut(piece, slice_bytes))
        turn = [queues[(rank + step) % num_ranks] for step in range(1, num_ranks + 1)]
        rounds = itertools.zip_longest(*(_fill_rounds(q, slice_bytes) for q in turn), fillvalue=())
        return cls(tuple(tuple(itertools.chain(*one)) for one in rounds))

    @property
    def slices(self) -> Iterator[Slice]:
        return itertools.chain.from_iterable(self.rounds)

    @cached_property
    def num_bytes(self) -> int:
        return sum(s.num_bytes for s in self.slices)

    @cached_property
    def num_slices(self) -> int:
        return sum(1 for _ in self.slices)

    def bytes_by_peer(self, num_ranks: int) -> list[int]:
        found = [0] * num_ranks
        for s in self.slices:
            found[s.peer] += s.num_bytes
        return found


def expert_slices(
    layer: LayerLayout, pieces: Sequence[SlotPiece], expert: int
) -> tuple[Slice, ...]:
    """The copies that bring one expert; none if it is resident or lies in boundary pages only."""
    return tuple(
        found
        for piece in pieces
        if (found := _cross(piece, layer[piece.tensor_idx].tensor.expert_bytes, expert))
    )


def _cross(piece: SlotPiece, row: int, expert: int) -> Slice | None:
    start = max(piece.view_offset, expert * row)
    end = min(piece.view_offset + piece.num_bytes, (expert + 1) * row)
    if start >= end:
        return None
    page_offset = start - piece.view_offset
    return Slice(piece.peer, piece.tensor_idx, start, piece.page_idx, page_offset, end - start)


def _fill_rounds(slices: Iterable[Slice], slice_bytes: int) -> Iterator[list[Slice]]:
    """Group the slices of one peer, in order, into rounds of at most `slice_bytes`."""
    group: list[Slice] = []
    num_bytes = 0
    for s in slices:
        if group and num_bytes + s.num_bytes > slice_bytes:
            yield group
            group, num_bytes = [], 0
        group.append(s)
        num_bytes += s.num_bytes
    if group:
        yield group


def _cut(piece: SlotPiece, slice_bytes: int) -> Iterator[Slice]:
    for at in range(0, piece.num_bytes, slice_bytes):
        num_bytes = min(slice_bytes, piece.num_bytes - at)
        yield Slice(
            piece.peer, piece.tensor_idx, piece.view_offset + at, piece.page_idx, at, num_bytes
        )
