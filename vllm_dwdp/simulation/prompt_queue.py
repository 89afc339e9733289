# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The prompts that wait at one rank, and how steps are cut from them."""

from collections import deque
from collections.abc import Iterator

import simpy

from vllm_dwdp.simulation.chunk import Chunk, Piece, Request


class PromptQueue:
    """Prompts of one rank, first come, first served.

    * A prompt is cut where a step is full, and goes on in the next step, if `is_chunked`. Otherwise
      a prompt waits for a step that has room for all of it; one that is larger than a step has a
      step of its own.
    * A token is pending until the step that computes it has ended.
    """

    def __init__(self, env: simpy.Environment, max_tokens: int, is_chunked: bool = True) -> None:
        self._env = env
        self._max_tokens = max_tokens
        self._is_chunked = is_chunked
        self._waiting: deque[tuple[Request, int]] = deque()
        self._arrival = env.event()
        self.pending_tokens = 0

    @property
    def is_empty(self) -> bool:
        return not self._waiting

    def add(self, request: Request) -> None:
        self._waiting.append((request, 0))
        self.pending_tokens += request.num_tokens
        self._arrival.succeed()
        self._arrival = self._env.event()

    def next_arrival(self) -> simpy.Event:
        """The event of the next prompt's arrival. Prompts that wait already don't count."""
        return self._arrival

    def take(self) -> Chunk:
        """Cut the next step; it has no pieces if no prompt waits."""
        return Chunk(tuple(self._cut()))

    def served(self, chunk: Chunk) -> None:
        """The step of this chunk has ended."""
        self.pending_tokens -= chunk.num_tokens

    def _cut(self) -> Iterator[Piece]:
        room = self._max_tokens
        while self._waiting and room > 0:
            request, start = self._waiting.popleft()
            rest = request.num_tokens - start
            if rest > room and not self._is_chunked and room < self._max_tokens:
                self._waiting.appendleft((request, start))
                return
            num_tokens = min(rest, room) if self._is_chunked else rest
            yield Piece(request, start, num_tokens)
            room -= num_tokens
            if num_tokens < rest:
                self._waiting.appendleft((request, start + num_tokens))
