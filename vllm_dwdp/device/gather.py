# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Selective on a GPU: one kernel reads the router's choice and copies what is missing of it.

* The host never learns the choice, so a captured graph replays it for any tokens.
* A program per missing expert and part of it: it looks for its expert among the ids, and copies.
* What a slot holds is noted on the device, in two rows that take turns: programs of one launch
  read the one and write the other.
* A launch has few arguments, of few kinds: each costs the host time at every layer, and a value
  that Triton specialises on is a kernel to compile, which a capture doesn't allow.
* `vllm_dwdp._core.ChosenExperts` does the same on host memory, and is its reference.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from vllm_dwdp.memory.slots import PeerCopy

CHUNK_BYTES = 1 << 18
PARTS = tl.constexpr(8)
"""Programs that share the copies of one expert."""

CHUNK_FIELDS = tl.constexpr(4)
"""Peer, destination, source, number of words."""

NUM_COUNTS = tl.constexpr(2)
"""Of `totals`, before the bytes of each peer."""

ID_BLOCK = tl.constexpr(1024)
WORD_BLOCK = tl.constexpr(2048)

WORD_TYPES = {8: tl.int64, 4: tl.int32, 2: tl.int16, 1: tl.uint8}
ID_TYPES = {4: tl.int32, 8: tl.int64}


def make_totals(num_peers: int, device: str) -> torch.Tensor:
    """int64 [2 + num_peers]: copies, chosen experts that a slot held already, bytes by peer."""
    return torch.zeros(NUM_COUNTS.value + num_peers, dtype=torch.int64, device=device)


class GatheredExperts:
    """The missing experts of one layer, in one slot; stands for ChosenExperts on a GPU.

    experts: by index, the copies of each; none: this rank has the expert.
    totals: see make_totals; shared by all layers.
    """

    def __init__(self, experts: Sequence[Sequence[PeerCopy]], totals: torch.Tensor) -> None:
        missing = [index for index, copies in enumerate(experts) if copies]
        chunks = [list(_chunks(experts[index])) for index in missing]
        self._word_bytes = _word_bytes(itertools.chain.from_iterable(chunks))
        table = _table(missing, chunks, self._word_bytes)
        self._table = torch.tensor(table, dtype=torch.int64, device=totals.device)
        self._held = torch.zeros(2, max(1, len(missing)), dtype=torch.int32, device=totals.device)
        self._totals = totals
        self._turn = 0
        self._holds_any = False
        self._launches = self._compile((len(missing), PARTS.value, 1)) if missing else {}

    def fetch(self, address: int, num_ids: int, id_bytes: int) -> tuple[list[int], int, int]:
        """Launch the gather on the current stream.

        Ids are dense int32 or int64 on the GPU; below 0: padding. What it copied is found in
        `totals`, not in what it returns.
        """
        if self._launches and num_ids:
            self._launches[id_bytes](*self._arguments(address, num_ids, id_bytes))
            self._turn = 1 - self._turn
            self._holds_any = True
        return [], 0, 0

    def forget(self) -> None:
        """The slot holds something else now; the next launch takes it from there."""
        self._holds_any = False

    def _arguments(self, address: int, num_ids: int, id_bytes: int) -> tuple[Any, ...]:
        return (
            *(address, num_ids, self._table, self._held, self._turn, int(self._holds_any)),
            *(self._totals, ID_TYPES[id_bytes], WORD_TYPES[self._word_bytes], self._word_bytes),
        )

    def _compile(self, grid: tuple[int, int, int]) -> dict[int, Callable[..., Any]]:
        """By bytes of an id: the kernel, run once on ids that choose nothing.

        A capture allows no compilation, and Triton's own look-up costs the host as much as the
        launch. Its interpreter has nothing compiled.
        """
        found = {}
        for dtype in (torch.int32, torch.int64):
            ids = torch.full((1,), -1, dtype=dtype, device=self._held.device)
            compiled = _gather[grid](*self._arguments(ids.data_ptr(), 1, ids.element_size()))
            found[ids.element_size()] = (_gather if compiled is None else compiled)[grid]
        return found


def _chunks(copies: Sequence[PeerCopy]) -> Iterator[PeerCopy]:
    for peer, destination, source, num_bytes in copies:
        for at in range(0, num_bytes, CHUNK_BYTES):
            yield peer, destination + at, source + at, min(CHUNK_BYTES, num_bytes - at)


def _word_bytes(copies: Iterable[PeerCopy]) -> int:
    """The widest word at whose multiples all copies begin and end."""
    bounds = itertools.chain.from_iterable(copy[1:] for copy in copies)
    return math.gcd(max(WORD_TYPES), *bounds)


def _table(
    missing: Sequence[int], chunks: Sequence[Sequence[PeerCopy]], word_bytes: int
) -> list[int]:
    """[missing experts | the first chunk of each, and the end | CHUNK_FIELDS of each chunk]."""
    first = itertools.accumulate((len(of_one) for of_one in chunks), initial=0)
    fields = (
        (peer, destination, source, num_bytes // word_bytes)
        for peer, destination, source, num_bytes in itertools.chain.from_iterable(chunks)
    )
    return [*missing, *first, *itertools.chain.from_iterable(fields)]


@triton.jit(do_not_specialize=["ids_address", "num_ids", "turn", "holds_any"])
def _gather(
    ids_address,
    num_ids,
    table,
    held,
    turn,
    holds_any,
    totals,
    ID_TYPE: tl.constexpr,
    WORD_TYPE: tl.constexpr,
    WORD_BYTES: tl.constexpr,
):
    """A program of (missing expert, part)."""
    index = tl.program_id(0)
    num_missing = tl.num_programs(0)
    part = tl.program_id(1)
    expert = tl.load(table + index)
    ids = ids_address.to(tl.pointer_type(ID_TYPE))
    is_chosen = 0
    for at in range(0, num_ids, ID_BLOCK):
        places = at + tl.arange(0, ID_BLOCK)
        chosen = tl.load(ids + places, mask=places < num_ids, other=-1)
        is_chosen = tl.maximum(is_chosen, tl.max((chosen == expert).to(tl.int32), axis=0))
    was_held = tl.load(held + turn * num_missing + index) * holds_any
    if part == 0:
        held_next = held + (1 - turn) * num_missing + index
        tl.store(held_next, tl.maximum(was_held, is_chosen))
        if is_chosen * was_held:
            tl.atomic_add(totals + 1, 1, sem="relaxed")
    if is_chosen > was_held:
        first = table + num_missing
        start = tl.load(first + index)
        end = tl.load(first + index + 1)
        if part == 0:
            tl.atomic_add(totals, end - start, sem="relaxed")
        for chunk in range(start + part, end, PARTS):
            fields = first + num_missing + 1 + chunk * CHUNK_FIELDS
            destination = tl.load(fields + 1).to(tl.pointer_type(WORD_TYPE))
            source = tl.load(fields + 2).to(tl.pointer_type(WORD_TYPE))
            num_words = tl.load(fields + 3)
            by_peer = totals + NUM_COUNTS + tl.load(fields)
            tl.atomic_add(by_peer, num_words * WORD_BYTES, sem="relaxed")
            for word in range(0, num_words, WORD_BLOCK):
                spots = word + tl.arange(0, WORD_BLOCK)
                copied = tl.load(source + spots, mask=spots < num_words)
                tl.store(destination + spots, copied, mask=spots < num_words)
