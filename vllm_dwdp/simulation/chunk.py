# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a step computes: the pieces of prompts that one rank takes at once."""

from functools import cached_property
from typing import NamedTuple


class Request(NamedTuple):
    """A prompt of `num_tokens` tokens that arrives `arrival_s` seconds after the start."""

    idx: int
    arrival_s: float
    num_tokens: int


class Piece(NamedTuple):
    """`num_tokens` tokens of a prompt, of which `start` tokens were computed in earlier steps."""

    request: Request
    start: int
    num_tokens: int

    @property
    def is_last(self) -> bool:
        return self.start + self.num_tokens == self.request.num_tokens

    def num_pairs(self, window: int | None = None) -> int:
        """Pairs of a token and a token that it attends to: itself and those before it.

        window: of so many tokens, itself included; None: of all.
        """
        end = self.start + self.num_tokens
        return _pairs_up_to(end, window) - _pairs_up_to(self.start, window)


class Chunk:
    """The pieces of one step. A step without pieces is a dummy step of expert parallelism."""

    def __init__(self, pieces: tuple[Piece, ...]) -> None:
        self.pieces = pieces

    @cached_property
    def num_tokens(self) -> int:
        return sum(piece.num_tokens for piece in self.pieces)

    def num_pairs(self, window: int | None = None) -> int:
        """Pairs of a token and a token that it attends to, in one layer and one head."""
        return sum(piece.num_pairs(window) for piece in self.pieces)


def _pairs_up_to(end: int, window: int | None) -> int:
    """Pairs of the first `end` tokens of a prompt."""
    near = end if window is None else min(end, window)
    return near * (near + 1) // 2 + (end - near) * near
