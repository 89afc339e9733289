# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Selective on a GPU: one kernel reads the router's choice and copies what is missing of it.

* The host never learns the choice, so a captured graph replays it for any tokens.
* A program per missing expert and part of it: it looks for its expert among the ids, and copies.
* What a slot holds is noted on the device, in two arrays that take turns: programs of one launch
  read the one and write the other.
* `vllm_dwdp._core.ChosenExperts` does the same on host memory, and is its reference.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import triton
import triton.language as tl

from vllm_dwdp.memory.slots import PeerCopy

CHUNK_BYTES = 1 << 18
PARTS = 8
"""Programs that share the copies of one expert."""

WORDS_ALIGNED = 4
"""Triton looks at multiples of 16 bytes."""

ID_BLOCK = 1024
WORD_BLOCK = 4096

WORD_TYPES = {8: tl.int64, 4: tl.int32, 2: tl.int16, 1: tl.uint8}
ID_TYPES = {4: tl.int32, 8: tl.int64}


class GatheredExperts:
    """The missing experts of one layer, in one slot; stands for ChosenExperts on a GPU.

    experts: by index, the copies of each; none: this rank has the expert.
    totals: int64 [num_peers + 2] on the GPU, shared by all layers: bytes by peer, copies, and
        chosen experts that the slot held already.
    """

    def __init__(self, experts: Sequence[Sequence[PeerCopy]], totals: torch.Tensor) -> None:
        missing = [index for index, copies in enumerate(experts) if copies]
        chunks = [list(_chunks(experts[index])) for index in missing]
        flat = list(itertools.chain.from_iterable(chunks))
        device = totals.device
        self._word = _word_bytes(flat)
        self._totals = totals
        self._num_missing = len(missing)
        self._experts = _table(missing, device)
        self._first = _table([0, *itertools.accumulate(len(c) for c in chunks)], device)
        self._peers = _table([peer for peer, _, _, _ in flat], device)
        self._destinations = _table([destination for _, destination, _, _ in flat], device)
        self._sources = _table([source for _, _, source, _ in flat], device)
        self._num_words = _table([num_bytes // self._word for *_, num_bytes in flat], device)
        # Rows of equal alignment: Triton compiles a kernel for each alignment that it meets.
        held_per_row = -(-max(1, len(missing)) // WORDS_ALIGNED) * WORDS_ALIGNED
        self._held = torch.zeros(2, held_per_row, dtype=torch.int32, device=device)
        self._turn = 0
        self._compile()

    def fetch(self, address: int, num_ids: int, id_bytes: int) -> tuple[list[int], int, int]:
        """Launch the gather on the current stream.

        Ids are dense int32 or int64 on the GPU; below 0: padding. What it copied is found in
        `totals`, not in what it returns.
        """
        if self._num_missing and num_ids:
            _gather[(self._num_missing, PARTS)](
                address,
                num_ids,
                self._experts,
                self._first,
                self._peers,
                self._destinations,
                self._sources,
                self._num_words,
                self._held[self._turn],
                self._held[1 - self._turn],
                self._totals,
                len(self._totals) - 2,
                PARTS=PARTS,
                ID_TYPE=ID_TYPES[id_bytes],
                WORD_TYPE=WORD_TYPES[self._word],
                WORD_BYTES=self._word,
                ID_BLOCK=ID_BLOCK,
                WORD_BLOCK=WORD_BLOCK,
            )
            self._turn = 1 - self._turn
        return [], 0, 0

    def _compile(self) -> None:
        """Run once for ids of each width, choosing nothing: a capture allows no compilation."""
        for dtype in (torch.int32, torch.int64):
            ids = torch.full((1,), -1, dtype=dtype, device=self._held.device)
            self.fetch(ids.data_ptr(), 1, ids.element_size())

    def forget(self) -> None:
        """The slot holds something else now. Ordered with the current stream."""
        self._held.zero_()


def _chunks(copies: Sequence[PeerCopy]) -> Iterator[PeerCopy]:
    for peer, destination, source, num_bytes in copies:
        for at in range(0, num_bytes, CHUNK_BYTES):
            yield peer, destination + at, source + at, min(CHUNK_BYTES, num_bytes - at)


def _word_bytes(copies: Iterable[PeerCopy]) -> int:
    """The widest word at whose multiples all copies begin and end."""
    bounds = itertools.chain.from_iterable(copy[1:] for copy in copies)
    return math.gcd(max(WORD_TYPES), *bounds)


def _table(values: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


@triton.jit(do_not_specialize=["ids_address", "num_ids"])
def _gather(
    ids_address,
    num_ids,
    experts,
    first,
    peers,
    destinations,
    sources,
    num_words,
    held,
    held_next,
    totals,
    num_peers,
    PARTS: tl.constexpr,
    ID_TYPE: tl.constexpr,
    WORD_TYPE: tl.constexpr,
    WORD_BYTES: tl.constexpr,
    ID_BLOCK: tl.constexpr,
    WORD_BLOCK: tl.constexpr,
):
    """A program of (missing expert, part): arrays are by missing expert, or by chunk."""
    index = tl.program_id(0)
    part = tl.program_id(1)
    expert = tl.load(experts + index)
    ids = ids_address.to(tl.pointer_type(ID_TYPE))
    is_chosen = 0
    for at in range(0, num_ids, ID_BLOCK):
        places = at + tl.arange(0, ID_BLOCK)
        chosen = tl.load(ids + places, mask=places < num_ids, other=-1)
        is_chosen = tl.maximum(is_chosen, tl.max((chosen == expert).to(tl.int32), axis=0))
    was_held = tl.load(held + index)
    if part == 0:
        tl.store(held_next + index, tl.maximum(was_held, is_chosen))
        tl.atomic_add(totals + num_peers + 1, (is_chosen * was_held).to(tl.int64))
    if is_chosen > was_held:
        start = tl.load(first + index)
        end = tl.load(first + index + 1)
        if part == 0:
            tl.atomic_add(totals + num_peers, end - start)
        for chunk in range(start + part, end, PARTS):
            source = tl.load(sources + chunk).to(tl.pointer_type(WORD_TYPE))
            destination = tl.load(destinations + chunk).to(tl.pointer_type(WORD_TYPE))
            words = tl.load(num_words + chunk)
            tl.atomic_add(totals + tl.load(peers + chunk), words * WORD_BYTES)
            for word in range(0, words, WORD_BLOCK):
                spots = word + tl.arange(0, WORD_BLOCK)
                copied = tl.load(source + spots, mask=spots < words)
                tl.store(destination + spots, copied, mask=spots < words)
