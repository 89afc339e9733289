# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`selective` on a GPU: one kernel reads the router's choice and copies the chosen experts.

* The host never learns the choice, so that a captured graph is right for any choice.
* A missing expert is one that this rank doesn't have. For each of these the kernel has PARTS
  programs. A program looks for its expert among the chosen ids, and if the slot lacks the expert,
  copies a part of it.
* The device notes which experts the slot holds, in two rows that take turns: the programs of one
  launch read one row and write the other.
* A launch has few arguments, because each costs the host time at every layer. Triton specialises
  on few of their values, because each specialisation is a kernel to compile, and a capture allows
  no compilation.
* `vllm_dwdp._core.ChosenExperts` does the same on host memory, and is the reference of this kernel.
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
"""A chunk has these fields: peer, destination, source, number of words."""

NUM_COUNTS = tl.constexpr(2)
"""How many counts `totals` has before the bytes of each peer."""

ID_BLOCK = tl.constexpr(1024)
WORD_BLOCK = tl.constexpr(2048)

WORD_TYPES = {8: tl.int64, 4: tl.int32, 2: tl.int16, 1: tl.uint8}
ID_TYPES = {4: tl.int32, 8: tl.int64}


def make_totals(num_peers: int, device: str) -> torch.Tensor:
    """Counters, all 0, as int64 [2 + num_peers].

    They are copies, chosen experts that a slot held already, and bytes by peer.
    """
    return torch.zeros(NUM_COUNTS.value + num_peers, dtype=torch.int64, device=device)


class GatheredExperts:
    """Copies the chosen experts of one layer to its slot; takes the place of ChosenExperts.

    experts: by expert index, the copies that bring the expert; none for one that this rank has.
    totals: see make_totals; all layers share it.
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

        address: of `num_ids` dense ids on the GPU, int32 or int64; ids below 0 are padding. The
        kernel counts what it copies in `totals`; the counts that this method returns are empty.
        """
        if self._launches and num_ids:
            self._launches[id_bytes](*self._arguments(address, num_ids, id_bytes))
            self._turn = 1 - self._turn
            self._holds_any = True
        return [], 0, 0

    def forget(self) -> None:
        """Note that the slot holds nothing of this layer any more."""
        self._holds_any = False

    def _arguments(self, address: int, num_ids: int, id_bytes: int) -> tuple[Any, ...]:
        return (
            *(address, num_ids, self._table, self._held, self._turn, int(self._holds_any)),
            *(self._totals, ID_TYPES[id_bytes], WORD_TYPES[self._word_bytes], self._word_bytes),
        )

    def _compile(self, grid: tuple[int, int, int]) -> dict[int, Callable[..., Any]]:
        """By the bytes of an id, the kernel, ready to launch.

        The kernel runs here once, on ids that choose nothing, because a capture allows no
        compilation. What Triton compiled is launched without Triton's look-up, which costs the host
        as much as the launch. Triton's interpreter compiles nothing: it launches the kernel itself.
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
    """Bytes of the widest word that divides all addresses and sizes of the copies."""
    bounds = itertools.chain.from_iterable(copy[1:] for copy in copies)
    return math.gcd(max(WORD_TYPES), *bounds)


def _table(
    missing: Sequence[int], chunks: Sequence[Sequence[PeerCopy]], word_bytes: int
) -> list[int]:
    """The kernel's table, three parts in a row.

    [missing experts | the first chunk of each, and the end | CHUNK_FIELDS of each chunk]
    """
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
    """Copies one part of a missing expert if it is chosen; the grid is (missing experts, PARTS)."""
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
