# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The living ranks of one vllm_dwdp.LLM: gives them prompts and collects their results."""

import contextlib
import os
import queue
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol

from vllm.logger import init_logger

from vllm_dwdp.offline.errors import RankDied
from vllm_dwdp.offline.prompt_queue import PromptQueue
from vllm_dwdp.offline.rank_handle import Rank, RankHandle

logger = init_logger("vllm.dwdp")

END_S = 15.0
FAMILY_S = 0.5
SIGNAL_S = 0.5
ECHO_S = 5.0
NONE_LEFT = "no dwdp rank is left to work on the prompts; see the log above, and build a new LLM."
SHUT_DOWN = "this vllm_dwdp.LLM was shut down; build a new one."


class Ranks(Protocol):
    """Starts all ranks of a job, as often as it is asked to: see local_ranks.LocalRanks."""

    def starting(self) -> AbstractContextManager[Iterable[Rank]]: ...


class RankPool:
    """The ranks that haven't ended. An item is a prompt, to render or to run.

    One call at a time uses the pool; any thread may call `end` and `stats`.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._to_start = ranks
        self._ranks: list[RankHandle] = []
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._owner_pid = os.getpid()
        self._is_ended = False

    @property
    def num_ranks(self) -> int:
        """How many ranks live."""
        return len(self._ranks)

    def start(self) -> None:
        """Start all ranks, and wait until they serve. Raises RankDied when a rank can't start."""
        try:
            with self._to_start.starting() as ranks:
                for index, rank in enumerate(ranks):
                    self._ranks.append(RankHandle(index, rank, self._news))
                self._wait_ready()
        except BaseException:
            self._end_ranks()
            raise

    def check_usable(self) -> None:
        """Raise RuntimeError or RankDied if no call on this pool can succeed."""
        if os.getpid() != self._owner_pid:
            raise RuntimeError("a vllm_dwdp.LLM works only in the process that built it.")
        if self._is_ended:
            raise RuntimeError(SHUT_DOWN)
        if not self._ranks:
            raise RankDied(NONE_LEFT)

    def run(self, kind: str, items: PromptQueue, report: Callable[[int], Any]) -> None:
        """Have the ranks work through the items.

        kind: "render", "run" or "batch". report: called with how many prompts ended since then.
        Raises RankDied when no rank is left, and RuntimeError when the pool ends meanwhile.
        """
        while not self._news.empty():  # ranks may have died since the last call
            self._collect(items)
        while items.num_open:
            self._dispatch(kind, items)
            report(self._collect(items))

    def abandon(self) -> None:
        """Stop all work in flight. A later call ignores its results, whose ids are older."""
        for rank in self._ranks:
            if rank.in_flight:
                rank.send(("abort",))
                rank.in_flight.clear()

    def stats(self) -> list[dict[str, Any]]:
        """The statistics of each living rank, see LLM.dwdp_stats; logs ranks that died."""
        found = []
        for rank in list(self._ranks):
            try:
                found.append(dict(rank.call("collective_rpc", "dwdp_stats")[0]))
            except RankDied as error:
                logger.error("%s", error)
        return found

    def call(self, name: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Have all living ranks call a method of their vllm.LLM, at the same time.

        Returns the results by rank. Raises what the first rank raises that fails, and RankDied.
        """
        self.check_usable()
        ranks = list(self._ranks)
        with ThreadPoolExecutor(max_workers=len(ranks)) as threads:
            calls = [threads.submit(rank.call, name, *args, **kwargs) for rank in ranks]
        return [call.result() for call in calls]

    def end(self) -> None:
        """End all ranks and the processes they started, in 15 s and some more for each rank.

        It takes 2 s more for one that leaves processes behind, and 5 s for one on a Ray node that
        no longer answers.

        Does nothing in a fork of the process that made the pool.
        """
        if os.getpid() != self._owner_pid:  # a fork of the process that owns them
            return
        self._is_ended = True
        self._end_ranks()

    def _dispatch(self, kind: str, items: PromptQueue) -> None:
        """Give items to the rank with the fewest tokens, again and again, until none takes any."""
        while True:
            if not self._ranks:
                raise RankDied(NONE_LEFT)
            if not self._give(kind, items):
                return

    def _give(self, kind: str, items: PromptQueue) -> bool:
        """Give items to one rank; returns whether one has taken some."""
        for rank in sorted(self._ranks, key=lambda r: items.tokens_of(r.in_flight)):
            if taken := items.take(len(rank.in_flight)):
                rank.send_items(kind, taken)
                return True
        return False

    def _collect(self, items: PromptQueue) -> int:
        """Wait for news from any rank; returns how many prompts ended."""
        rank, (kind, body) = self._wait_for_news()
        if self._is_ended:
            raise RuntimeError(SHUT_DOWN)
        if kind == "answers":
            rank.in_flight.difference_update(answer.item_id for answer in body)
            return sum(items.finish(i, content, is_error=is_error) for i, is_error, content in body)
        return self._bury(rank, str(body), items) if rank in self._ranks else 0

    def _wait_for_news(self) -> Any:
        """Wait for the next message of any rank, in short turns, so that Ctrl-C is always noticed.

        The kernel may deliver the signal to another thread, which wouldn't interrupt a long wait.
        """
        while True:
            with contextlib.suppress(queue.Empty):
                return self._news.get(timeout=SIGNAL_S)

    def _bury(self, rank: RankHandle, reason: str, items: PromptQueue) -> int:
        self._ranks.remove(rank)
        rank.join(time.monotonic() + END_S)
        logger.error("dwdp rank %d: %s", rank.index, reason)
        logger.error(
            "dwdp rank %d ended (exit code %s); its %d prompts in flight are tried once more.",
            rank.index,
            rank.exit_code,
            len(rank.in_flight),
        )
        num_failed = items.rank_died(rank.index, rank.in_flight)
        if num_failed and items.num_open and not self._ranks:
            # The prompt was alone on its rank, so the other prompts didn't end it: new ranks can
            # run them.
            logger.error(
                "A prompt ended the last dwdp rank; all ranks are started again for the others."
            )
            self._start_again()
        return num_failed

    def _start_again(self) -> None:
        """Start all ranks anew during a call. Raises RankDied if there is no room for them now."""
        try:
            self.start()
        except (ConnectionError, ValueError) as error:
            raise RankDied(f"no dwdp rank is left, and none could be started: {error}") from error

    def _wait_ready(self) -> None:
        starting = set(self._ranks)
        while starting:
            for rank in self._ranks:
                rank.note_family()
            try:
                rank, (kind, body) = self._news.get(timeout=FAMILY_S)
            except queue.Empty:
                continue
            if kind == "ready":
                starting.discard(rank)
            elif kind != "begun" and rank in starting:
                raise RankDied(self._why_not_started(rank, kind, body))

    def _why_not_started(self, rank: RankHandle, kind: str, body: str) -> str:
        """The group's own sentence if a rank still reports it, else this rank's reason.

        When a group fails, all its ranks end, and their reports arrive one after the other.
        """
        reason = f"dwdp rank {rank.index} could not start: {body}"
        deadline = time.monotonic() + ECHO_S
        failed = {rank}
        while kind != "group failed" and len(failed) < len(self._ranks):
            try:
                rank, (kind, body) = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if kind not in ("begun", "ready"):
                failed.add(rank)
        return body if kind == "group failed" else reason

    def _end_ranks(self) -> None:
        ranks = list(self._ranks)
        for rank in ranks:
            rank.ask_to_end()
        deadline = time.monotonic() + END_S
        for rank in ranks:
            rank.join(deadline)
        self._ranks.clear()
