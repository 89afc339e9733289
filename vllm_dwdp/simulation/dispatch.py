# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which rank serves a prompt. The choice is made once, when the prompt arrives."""

from collections.abc import Callable, Generator, Iterable, Sequence
from enum import StrEnum

import simpy

from vllm_dwdp.simulation.chunk import Request
from vllm_dwdp.simulation.prompt_queue import PromptQueue


class Dispatch(StrEnum):
    """How a rank is chosen for a prompt."""

    ROUND_ROBIN = "round_robin"
    PENDING_TOKENS = "pending_tokens"
    """The rank with the fewest pending tokens; among equals, the one with the lowest number."""


Choice = Callable[[Request, Sequence[PromptQueue]], PromptQueue]


def _in_turn(request: Request, queues: Sequence[PromptQueue]) -> PromptQueue:
    return queues[request.idx % len(queues)]


def _least_pending(request: Request, queues: Sequence[PromptQueue]) -> PromptQueue:
    return min(queues, key=lambda queue: queue.pending_tokens)


CHOICES: dict[Dispatch, Choice] = {
    Dispatch.ROUND_ROBIN: _in_turn,
    Dispatch.PENDING_TOKENS: _least_pending,
}


def deliver(
    env: simpy.Environment,
    requests: Iterable[Request],
    queues: Sequence[PromptQueue],
    dispatch: Dispatch,
) -> Generator[simpy.Event, object, None]:
    """The process that hands each prompt to a rank when it arrives."""
    choose = CHOICES[dispatch]
    for request in requests:
        if request.arrival_s > env.now:
            yield env.timeout(request.arrival_s - env.now)
        choose(request, queues).add(request)
