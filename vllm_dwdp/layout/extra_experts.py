# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which missing experts a rank keeps copies of in spare memory: pure arithmetic over bytes.

* A rank keeps the experts that its tokens have chosen most, so it fetches fewer bytes.
* Memory is mapped in whole allocations. So the owner cuts its blocks where copies of any rank begin
  and end, and every rank maps the parts that it has no copy of.
* Copies consist of whole pages, so a copy of an expert holds a little of its neighbours as well.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

from vllm_dwdp.layout.rank_layout import BlockKey, RankLayout
from vllm_dwdp.layout.tensors import Span, TensorLayout

PageRun = tuple[int, int, int, int]
"""(layer index, tensor index, first byte in the view, bytes) of whole pages."""

Wishes = Sequence[PageRun]
"""The pages that one rank wants to keep copies of."""


def choose_pages(
    layout: RankLayout, counts: Sequence[Sequence[int]], *, num_bytes: int, max_experts: int
) -> list[PageRun]:
    """The pages of the missing experts that were chosen most, as many as fit into `num_bytes`.

    counts: by layer and by expert, how often tokens chose the expert. max_experts: the most experts
    to keep.
    """
    layers = [_MissingPages(layout, layer_idx) for layer_idx in range(layout.num_layers)]
    num_chosen = 0
    for layer_idx, expert in _by_count(counts):
        added = layers[layer_idx].bytes_added_by(expert)
        if 0 < added <= num_bytes and num_chosen < max_experts:
            layers[layer_idx].add(expert)
            num_bytes -= added
            num_chosen += 1
    return list(itertools.chain.from_iterable(layer.runs() for layer in layers))


def with_extra_experts(layout: RankLayout, wishes: Sequence[Wishes]) -> RankLayout:
    """The layout in which every rank of the group keeps copies of the pages that it wants.

    wishes: by rank of the group. A rank that has the same wishes computes the same cuts.
    """
    cuts: dict[tuple[int, int], set[int]] = {}
    for layer_idx, tensor_idx, start, num_bytes in itertools.chain.from_iterable(wishes):
        cuts.setdefault((layer_idx, tensor_idx), set()).update((start, start + num_bytes))
    layouts = tuple(
        tuple(
            dataclasses.replace(tensor, cuts=tuple(sorted(cuts.get((layer_idx, idx), ()))))
            for idx, tensor in enumerate(tensors)
        )
        for layer_idx, tensors in enumerate(layout.layouts)
    )
    made = dataclasses.replace(layout, layouts=layouts)
    return dataclasses.replace(made, extra=frozenset(_blocks(made, wishes[layout.rank])))


class _MissingPages:
    """The pages of one layer that a rank lacks, and those of them that are chosen."""

    def __init__(self, layout: RankLayout, layer_idx: int) -> None:
        self._layer_idx = layer_idx
        self._tensors = layout.layouts[layer_idx]
        self._blocks = list(layout.missing_blocks(layer_idx))
        self._chosen: list[list[Span]] = [[] for _ in self._tensors]

    def bytes_added_by(self, expert: int) -> int:
        """Bytes by which the copies would grow; 0 if they hold the expert or it isn't missing."""
        return sum(
            _total(_joined([*self._chosen[idx], span])) - _total(self._chosen[idx])
            for idx, span in self._spans(expert)
        )

    def add(self, expert: int) -> None:
        for idx, span in self._spans(expert):
            self._chosen[idx] = _joined([*self._chosen[idx], span])

    def runs(self) -> Iterator[PageRun]:
        for idx, spans in enumerate(self._chosen):
            yield from ((self._layer_idx, idx, span.start, span.num_bytes) for span in spans)

    def _spans(self, expert: int) -> Iterator[tuple[int, Span]]:
        """For each tensor, the pages in which a missing expert lies; boundary pages don't count."""
        for tensor_idx, extent, *_ in self._blocks:
            if extent.segment.start <= expert < extent.segment.end:
                start, end = _pages_of(self._tensors[tensor_idx], expert)
                start = max(start, extent.start)
                end = min(end, extent.start + extent.num_bytes)
                if start < end:
                    yield tensor_idx, Span(start, end - start)


def _by_count(counts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(layer, expert) of all experts that were chosen, those chosen most first."""
    found = [
        (-count, layer_idx, expert)
        for layer_idx, of_layer in enumerate(counts)
        for expert, count in enumerate(of_layer)
        if count > 0
    ]
    return [(layer_idx, expert) for _, layer_idx, expert in sorted(found)]


def _pages_of(tensor: TensorLayout, expert: int) -> tuple[int, int]:
    """The bounds of an expert's row, moved outwards to bounds of pages."""
    page, row = tensor.granularity, tensor.tensor.expert_bytes
    return expert * row // page * page, -(-(expert + 1) * row // page) * page


def _joined(spans: Iterable[Span]) -> list[Span]:
    """The same bytes as spans that neither overlap nor touch, in order."""
    found: list[Span] = []
    for start, num_bytes in sorted(spans):
        if found and start <= (end := found[-1].start + found[-1].num_bytes):
            end = max(end, start + num_bytes)
            found[-1] = Span(found[-1].start, end - found[-1].start)
        else:
            found.append(Span(start, num_bytes))
    return found


def _total(spans: Iterable[Span]) -> int:
    return sum(span.num_bytes for span in spans)


def _blocks(layout: RankLayout, wishes: Wishes) -> Iterator[BlockKey]:
    """The missing blocks that lie in the wanted pages."""
    wanted = {(layer_idx, idx, start): start + size for layer_idx, idx, start, size in wishes}
    for layer_idx in range(layout.num_layers):
        end_of: dict[int, int] = {}
        for block in layout.missing_blocks(layer_idx):
            idx, start = block.tensor_idx, block.extent.start
            end_of[idx] = wanted.get((layer_idx, idx, start), end_of.get(idx, 0))
            if start < end_of[idx]:
                yield BlockKey(layer_idx, idx, start)
