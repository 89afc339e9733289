# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Where each expert's bytes lie in blocks, fringes and views: pure arithmetic over bytes.

A view shows one expert tensor `[num_experts, ...]`, cut at ownership boundaries::

    | segment 0 (rank 0)          | segment 1 (rank 1)         |
    |  interior pages     | tail  | head |  interior pages     |
    |  block of rank 0    | boundary page|  block of rank 1    |

* A block is the page-aligned interior of one segment, or a part of it where copies of extra experts
  cut it; it is exported and mapped whole.
* Fragments (heads and tails) of one rank are packed, in order, into its fringe.
* A boundary page is private; it is filled from fringes and is part of no block.
* Every rank computes the layouts of all ranks, so that they exchange none.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from vllm_dwdp.layout.placement import Placement, Segment

MIN_PAGES_PER_RANK = 2


class ExpertTensor(NamedTuple):
    """The schema of one expert tensor: its name and the bytes of one expert's row."""

    name: str
    expert_bytes: int


class Extent(NamedTuple):
    """Bytes `[start, start + num_bytes)` of a view that come from one segment."""

    segment: Segment
    start: int
    num_bytes: int


class Span(NamedTuple):
    """Bytes `[start, start + num_bytes)` of a view."""

    start: int
    num_bytes: int


@dataclass(frozen=True)
class TensorLayout:
    """The view of one expert tensor, the same on every rank.

    cuts: offsets in the view, multiples of the granularity, at which blocks are cut.
    """

    tensor: ExpertTensor
    placement: Placement
    granularity: int
    cuts: tuple[int, ...] = ()

    @property
    def num_bytes(self) -> int:
        return self.placement.num_experts * self.tensor.expert_bytes

    @property
    def view_bytes(self) -> int:
        return _round_up(self.num_bytes, self.granularity)

    @property
    def is_kept_whole(self) -> bool:
        """Whether the tensor is so small that every rank holds all of it, in private pages."""
        largest = max(end - start for start, end in self.placement.ranges)
        return largest * self.tensor.expert_bytes < MIN_PAGES_PER_RANK * self.granularity

    @cached_property
    def interiors(self) -> tuple[Extent, ...]:
        """The page-aligned interior of every segment that has one."""
        if self.is_kept_whole:
            return ()
        found = (self._interior(segment) for segment in self.placement.segments())
        return tuple(extent for extent in found if extent.num_bytes > 0)

    @cached_property
    def blocks(self) -> tuple[Extent, ...]:
        """The interiors, cut at `cuts`."""
        return tuple(part for extent in self.interiors for part in _parts(extent, self.cuts))

    @cached_property
    def fragments(self) -> tuple[Extent, ...]:
        """The parts of each segment that no block covers, in order."""
        interiors = {extent.segment: extent for extent in self.interiors}
        return tuple(
            extent
            for segment in self.placement.segments()
            for extent in self._fragments_of(segment, interiors.get(segment))
        )

    @cached_property
    def private_spans(self) -> tuple[Span, ...]:
        """The boundary pages: all of the view that no block covers."""
        spans, at = [], 0
        for extent in self.interiors:
            spans.append(Span(at, extent.start - at))
            at = extent.start + extent.num_bytes
        spans.append(Span(at, self.view_bytes - at))
        return tuple(span for span in spans if span.num_bytes > 0)

    def source(self, segment: Segment, rank: int, layer_idx: int, tensor_idx: int) -> int:
        """The rank out of whose memory `rank` reads a segment of this tensor of a layer."""
        return self.placement.source(segment, rank, layer_idx + tensor_idx)

    def blocks_of(self, rank: int) -> tuple[Extent, ...]:
        return tuple(extent for extent in self.blocks if rank in extent.segment.owners)

    def _bounds(self, segment: Segment) -> tuple[int, int]:
        row = self.tensor.expert_bytes
        return segment.start * row, segment.end * row

    def _interior(self, segment: Segment) -> Extent:
        start, end = self._bounds(segment)
        start = _round_up(start, self.granularity)
        end = end // self.granularity * self.granularity
        return Extent(segment, start, end - start)

    def _fragments_of(self, segment: Segment, interior: Extent | None) -> Iterator[Extent]:
        start, end = self._bounds(segment)
        if interior is None:
            yield Extent(segment, start, end - start)
            return
        inner_end = interior.start + interior.num_bytes
        if start < interior.start:
            yield Extent(segment, start, interior.start - start)
        if inner_end < end:
            yield Extent(segment, inner_end, end - inner_end)


def _parts(extent: Extent, cuts: Iterable[int]) -> Iterator[Extent]:
    """The parts of an extent between those cuts that lie inside it."""
    end = extent.start + extent.num_bytes
    inside = sorted(cut for cut in cuts if extent.start < cut < end)
    for start, stop in itertools.pairwise([extent.start, *inside, end]):
        yield Extent(extent.segment, start, stop - start)


LayerLayout = tuple[TensorLayout, ...]
"""The layouts of one layer's expert tensors, in the same order on every rank."""


class SourcedBlock(NamedTuple):
    """A block of a layer, and the rank that it is read from.

    is_extra: whether the reading rank keeps a copy of it for good.
    """

    tensor_idx: int
    extent: Extent
    source: int
    is_extra: bool = False

    def is_missing(self, rank: int) -> bool:
        """Whether the rank's kernels read it over a link, until it is copied into a slot."""
        return not self.is_extra and (self.source != rank or self.extent.segment.on_host)


class FringePiece(NamedTuple):
    """One fragment and its place in a rank's fringe."""

    layer_idx: int
    tensor_idx: int
    extent: Extent
    offset: int


@dataclass(frozen=True)
class FringeLayout:
    """The fringe of one rank: all its fragments of all layers, packed in order."""

    rank: int
    granularity: int
    pieces: tuple[FringePiece, ...]

    @classmethod
    def make(cls, layouts: Sequence[LayerLayout], *, rank: int, granularity: int) -> "FringeLayout":
        pieces, offset = [], 0
        for layer_idx, tensor_idx, extent in _owned_fragments(layouts, rank):
            pieces.append(FringePiece(layer_idx, tensor_idx, extent, offset))
            offset += extent.num_bytes
        return cls(rank, granularity, tuple(pieces))

    @property
    def num_bytes(self) -> int:
        used = self.pieces[-1].offset + self.pieces[-1].extent.num_bytes if self.pieces else 0
        return _round_up(used, self.granularity)

    @cached_property
    def by_tensor(self) -> dict[tuple[int, int], tuple[FringePiece, ...]]:
        """Pieces by (layer_idx, tensor_idx)."""
        found: dict[tuple[int, int], tuple[FringePiece, ...]] = {}
        for piece in self.pieces:
            key = piece.layer_idx, piece.tensor_idx
            found[key] = (*found.get(key, ()), piece)
        return found


def _owned_fragments(
    layouts: Sequence[LayerLayout], rank: int
) -> Iterator[tuple[int, int, Extent]]:
    for layer_idx, tensors in enumerate(layouts):
        for tensor_idx, layout in enumerate(tensors):
            for extent in layout.fragments:
                if rank in extent.segment.owners:
                    yield layer_idx, tensor_idx, extent


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
