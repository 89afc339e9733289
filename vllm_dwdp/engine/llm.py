# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Offline inference over all ranks: vllm.LLM with `data_parallel_size=N`.

* One process per rank (vLLM's `VLLM_DP_*` variables); prompts go to whichever rank is free.
* A rank that dies costs its prompts in flight one retry on the others, and is reported.
"""

import multiprocessing.connection
import socket
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm
from vllm.logger import init_logger
from vllm.renderers.inputs.preprocess import conversation_to_seq, prompt_to_seq

from vllm_dwdp.engine.prompt_queue import PromptQueue
from vllm_dwdp.engine.rank_handle import RankDied, RankHandle, wait_ready

logger = init_logger("vllm.dwdp")
DEFAULT_MAX_IN_FLIGHT = 64


class LLM:
    """The constructor, `generate` and `chat` of vllm.LLM, over `data_parallel_size` ranks.

    max_in_flight: prompts that one rank holds at a time; the rest wait for whoever is free.
    Raises RankDied when a rank can't start, or when none is left.
    """

    def __init__(
        self,
        model: str,
        *,
        data_parallel_size: int = 1,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        **options: Any,
    ) -> None:
        _check_at_least_one(data_parallel_size=data_parallel_size, max_in_flight=max_in_flight)
        self._max_in_flight = max_in_flight
        self._next_id = 0
        port = _free_port()
        options = {"model": model, **options}
        self._ranks = [
            RankHandle.start(index, data_parallel_size, port, options)
            for index in range(data_parallel_size)
        ]
        self._finalizer = weakref.finalize(self, _end_ranks, self._ranks)
        try:
            wait_ready(self._ranks)
        except BaseException:
            for rank in self._ranks:
                rank.terminate()
            self.shutdown()
            raise

    def generate(
        self,
        prompts: Any,
        sampling_params: Any = None,
        *,
        use_tqdm: bool | Callable[..., tqdm] = True,
        **options: Any,
    ) -> list[Any]:
        """As vllm.LLM.generate: one RequestOutput per prompt, in their order."""
        return self._run("generate", prompt_to_seq(prompts), sampling_params, use_tqdm, options)

    def chat(
        self,
        messages: Any,
        sampling_params: Any = None,
        use_tqdm: bool | Callable[..., tqdm] = True,
        **options: Any,
    ) -> list[Any]:
        """As vllm.LLM.chat: one conversation or a list of them."""
        return self._run("chat", conversation_to_seq(messages), sampling_params, use_tqdm, options)

    def dwdp_stats(self) -> list[dict[str, Any]]:
        """What each living rank owns, maps and has run; sizes in bytes."""
        found = []
        for rank in self._ranks:
            try:
                found.append(rank.stats())
            except RankDied as error:
                logger.error("%s", error)
        return found

    def shutdown(self) -> None:
        """End all ranks; also happens when the object goes or the program ends."""
        self._finalizer()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    def _run(
        self,
        kind: str,
        prompts: Sequence[Any],
        params: Any,
        use_tqdm: bool | Callable[..., tqdm],
        options: dict[str, Any],
    ) -> list[Any]:
        queue = PromptQueue(self._next_id, kind, prompts, params, options)
        self._next_id += len(prompts)
        make_bar = use_tqdm if callable(use_tqdm) else tqdm
        with make_bar(total=len(prompts), desc="Processed prompts", disable=not use_tqdm) as bar:
            while queue.num_open:
                self._dispatch(queue)
                bar.update(self._collect(queue))
        return queue.results()

    def _dispatch(self, queue: PromptQueue) -> None:
        """Hand waiting prompts to the least busy ranks with room."""
        while queue.waiting:
            rank = min(self._ranks, key=lambda r: len(r.in_flight), default=None)
            if rank is None:
                raise RankDied("no dwdp rank is left to work on the prompts; see the log above.")
            if len(rank.in_flight) >= self._max_in_flight:
                return
            prompt_id = queue.waiting.popleft()
            try:
                rank.send(prompt_id, queue.message(prompt_id))
            except OSError:
                queue.take_back(prompt_id)
                self._bury(rank, queue)

    def _collect(self, queue: PromptQueue) -> int:
        """Wait for news from any rank; returns how many prompts ended."""
        by_pipe = {rank.pipe: rank for rank in self._ranks}
        num_done = 0
        for pipe in multiprocessing.connection.wait(list(by_pipe)):
            rank = by_pipe[pipe]
            try:
                kind, body = rank.pipe.recv()
            except (EOFError, OSError):
                kind, body = "failed", "its process ended"
            if kind == "failed":
                logger.error("dwdp rank %d: %s", rank.index, body)
                self._bury(rank, queue)
                continue
            prompt_id, result = body
            rank.in_flight.discard(prompt_id)
            if prompt_id in queue:  # else of a call that was broken off
                queue.finish(prompt_id, result, is_error=kind == "refused")
                num_done += 1
        return num_done

    def _bury(self, rank: RankHandle, queue: PromptQueue) -> None:
        self._ranks.remove(rank)
        rank.join()
        logger.error(
            "dwdp rank %d ended (exit code %s); its %d prompts in flight are tried once more on "
            "the other ranks.",
            rank.index,
            rank.process.exitcode,
            len(rank.in_flight),
        )
        for prompt_id in sorted(rank.in_flight):
            if prompt_id in queue:
                queue.retry(prompt_id, rank.index)


def _check_at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def _end_ranks(ranks: list[RankHandle]) -> None:
    for rank in ranks:
        try:
            rank.pipe.send(None)
        except OSError:
            logger.debug("dwdp rank %d ended before it was told to", rank.index)
    for rank in ranks:
        rank.join()
    ranks.clear()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
