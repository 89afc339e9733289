# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One pass of prompts over the ranks: which wait, which are tried again, and their results.

* Prompts are handed out in order. So once a prompt is refused and those in flight have ended, it is
  known which prompt is the first refused one.
* When a rank dies, all its prompts become suspects. They are tried once more, after all others and
  one at a time on a rank, so that a prompt that ends its rank fails no other prompt.
"""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

from vllm_dwdp.offline.errors import RankDied


class PromptQueue:
    """The items of one pass. An item has an id that no other pass of the LLM uses.

    limit: items that a rank holds at a time. batch: items in one message to a rank.
    stops_at_error: hand out no more items once one is refused. sizes: prompts in each item, if an
    item isn't one.
    """

    def __init__(
        self,
        first_id: int,
        items: Sequence[Any],
        *,
        limit: int,
        batch: int = 1,
        stops_at_error: bool = False,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self.limit = limit
        self.results: list[Any] = [None] * len(items)
        self.errors: dict[int, BaseException] = {}
        self._first_id = first_id
        self._items = items
        self._batch = batch
        self._stops_at_error = stops_at_error
        self._sizes = sizes
        self._waiting = deque(range(len(items)))
        self._suspects: deque[int] = deque()
        self._open = set(self._waiting)
        self._retried: set[int] = set()

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_retried(self) -> int:
        return len(self._retried)

    def take(self, num_in_flight: int) -> list[tuple[int, Any]]:
        """The ids and items to send next, if any, to a rank that holds `num_in_flight` items."""
        if self._waiting:
            num = min(self._batch, self.limit - num_in_flight, len(self._waiting))
            taken = [self._waiting.popleft() for _ in range(num)]
        elif self._suspects and not num_in_flight:
            taken = [self._suspects.popleft()]
        else:
            return []
        return [(self._first_id + index, self._items[index]) for index in taken]

    def finish(self, item_id: int, result: Any, *, is_error: bool) -> int:
        """Keep an item's result or exception; returns how many prompts ended with it.

        That is none if the item belongs to an aborted call.
        """
        index = item_id - self._first_id
        if index not in self._open:
            return 0
        self._open.remove(index)
        if is_error:
            self.errors[index] = result
            self._stop_if_wanted()
        else:
            self.results[index] = result
        return self._sizes[index] if self._sizes else 1

    def rank_died(self, rank: int, item_ids: Collection[int]) -> int:
        """Make a dead rank's items suspects, and fail those that were tried again already.

        Returns how many failed.
        """
        num_failed = 0
        for item_id in sorted(item_ids):
            index = item_id - self._first_id
            if index not in self._retried:
                self._retried.add(index)
                self._suspects.append(index)
                continue
            error = RankDied(f"dwdp rank {rank} died with it, as one did before")
            num_failed += self.finish(item_id, error, is_error=True)
        return num_failed

    def _stop_if_wanted(self) -> None:
        if self._stops_at_error:
            self._open.difference_update(self._waiting, self._suspects)
            self._waiting.clear()
            self._suspects.clear()
