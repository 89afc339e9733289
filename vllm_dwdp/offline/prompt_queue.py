# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One pass of prompts over the ranks: which wait, which are tried again, and their results.

* Prompts are handed out in order. So once a prompt is refused and those in flight have ended, it is
  known which prompt is the first refused one.
* Where prompts have lengths, the last ones go longest first. So ranks end at about the same time:
  whoever is first to be done gets another short one.
* When a rank dies, all its prompts become suspects. They are tried once more, after all others and
  one at a time on a rank, so that a prompt that ends its rank fails no other prompt.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from vllm_dwdp.offline.errors import RankDied


class PromptQueue:
    """The items of one pass. An item has an id that no other pass of the LLM uses.

    limit: items that a rank holds at a time. batch: items in one message to a rank.
    stops_at_error: hand out no more items once one is refused. sizes: prompts in each item, if an
    item isn't one. lengths: of each item, in tokens; the last `num_last` go longest first.
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
        lengths: Sequence[int] | None = None,
        num_last: int = 0,
    ) -> None:
        self.limit = limit
        self.results: list[Any] = [None] * len(items)
        self.errors: dict[int, BaseException] = {}
        self._first_id = first_id
        self._items = items
        self._batch = batch
        self._stops_at_error = stops_at_error
        self._sizes = sizes
        self._lengths = lengths
        self._waiting = deque(_order(lengths, num_last, len(items)))
        self._suspects: deque[int] = deque()
        self._open = set(self._waiting)
        self._retried: set[int] = set()

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_retried(self) -> int:
        return len(self._retried)

    def tokens_of(self, item_ids: Iterable[int]) -> int:
        """The lengths of these items together; their number if this queue knows no lengths."""
        if self._lengths is None:
            return sum(1 for _ in item_ids)
        return sum(self._lengths[item_id - self._first_id] for item_id in item_ids)

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


def _order(lengths: Sequence[int] | None, num_last: int, num_items: int) -> list[int]:
    """The order in which items are handed out, see above."""
    order = list(range(num_items))
    if lengths is None or not num_last:
        return order
    known = lengths
    return order[:-num_last] + sorted(order[-num_last:], key=lambda index: -known[index])
