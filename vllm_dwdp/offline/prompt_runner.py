# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs the prompts of one call over all ranks, and puts their outputs in order."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from vllm_dwdp.offline.batch import Batch
from vllm_dwdp.offline.errors import NoRankLeft, PromptsFailed, RankDied
from vllm_dwdp.offline.prompt import RawPrompt, num_tokens
from vllm_dwdp.offline.prompt_queue import PromptQueue
from vllm_dwdp.offline.rank_pool import RankPool

RENDER_BATCH = 32
"""Prompts in one message to render: few enough that all ranks finish at about the same time."""

NUM_LAST_OF_RANK = 64
"""For each rank, so many of the last prompts are run longest first."""

Report = Callable[[int], Any]
"""Called with how many prompts ended since the last time."""


class PromptRunner:
    """Gives the prompts of one call at a time to the ranks of a pool.

    max_in_flight: prompts that one rank holds at a time.
    """

    def __init__(self, pool: RankPool, max_in_flight: int) -> None:
        self._pool = pool
        self._max_in_flight = max_in_flight
        self._next_id = 0

    def render(self, raw: Sequence[RawPrompt]) -> list[Any]:
        """Have the ranks render all prompts.

        Returns for each what a rank is to run: a RenderedPrompt, the RawPrompt itself, or RankDied
        for a prompt that has ended two ranks. Raises vLLM's exception for the first one refused.
        """
        queue = self._queue(raw, limit=2 * RENDER_BATCH, batch=RENDER_BATCH, stops_at_error=True)
        self._pool.run("render", queue, lambda num_done: None)
        refused = {i: e for i, e in queue.errors.items() if not isinstance(e, RankDied)}
        if refused:
            first = min(refused)
            refused[first].add_note(f"This is prompt {first} of {len(raw)}; none was run.")
            raise refused[first]
        return [queue.errors.get(i) or queue.results[i] or prompt for i, prompt in enumerate(raw)]

    def run(self, items: Sequence[Any], report: Report) -> list[Any]:
        """Run what `render` has returned; returns the outputs, in the order of the prompts.

        Raises PromptsFailed, with the outputs of the others, if a prompt has no output.
        """
        dead = {i: item for i, item in enumerate(items) if isinstance(item, RankDied)}
        indices = [i for i in range(len(items)) if i not in dead]
        queue = self._queue(
            [items[i] for i in indices],
            limit=self._max_in_flight,
            lengths=[num_tokens(items[i]) for i in indices],
            num_last=NUM_LAST_OF_RANK * self._pool.num_ranks,
        )
        outputs: list[Any] = [None] * len(items)
        no_rank_left = self._run("run", queue, report)
        for index, output in zip(indices, queue.results, strict=True):
            outputs[index] = output
        errors = {**dead, **{indices[i]: error for i, error in queue.errors.items()}}
        return _complete(outputs, errors, no_rank_left)

    def run_batches(self, batches: Sequence[Batch], report: Report) -> list[Any]:
        """Run batches; returns the outputs of all their prompts, in order.

        Raises what vLLM raises for the first batch that it refuses, and PromptsFailed as `run`.
        """
        sizes = [batch.num_prompts for batch in batches]
        queue = self._queue(batches, limit=1, stops_at_error=True, sizes=sizes)
        no_rank_left = self._run("batch", queue, report)
        starts = list(itertools.accumulate(sizes, initial=0))
        for index, error in sorted(queue.errors.items()):
            if not isinstance(error, RankDied):
                error.add_note(f"This is of prompts {starts[index]} to {starts[index + 1] - 1}.")
                raise error
        found = zip(queue.results, sizes, strict=True)
        outputs = [one for of_batch, size in found for one in of_batch or [None] * size]
        errors = {starts[index]: error for index, error in queue.errors.items()}
        return _complete(outputs, errors, no_rank_left)

    def _run(self, kind: str, queue: PromptQueue, report: Report) -> RankDied | None:
        """Have the ranks work through a queue; returns why they stopped if no rank is left."""
        try:
            self._pool.run(kind, queue, report)
        except RankDied as error:
            return error
        return None

    def _queue(self, items: Sequence[Any], **options: Any) -> PromptQueue:
        """A queue with new ids, so that late answers to an aborted call match no later item."""
        queue = PromptQueue(self._next_id, items, **options)
        self._next_id += len(items)
        return queue


def _complete(
    outputs: list[Any], errors: dict[int, BaseException], no_rank_left: RankDied | None
) -> list[Any]:
    """The outputs if no prompt failed; raises PromptsFailed or NoRankLeft otherwise."""
    num_failed = sum(output is None for output in outputs)
    failed = (
        f"{num_failed} of {len(outputs)} prompts failed; the outputs of the others are in this "
        "exception's 'outputs'."
    )
    if no_rank_left is not None:
        raise NoRankLeft(f"{no_rank_left} {failed}", outputs) from no_rank_left
    if errors:
        first = min(errors)
        text = f"{failed} Prompt {first}: {errors[first]}."
        raise PromptsFailed(text, outputs) from errors[first]
    return outputs
