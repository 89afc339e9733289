# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Offline inference over all ranks: vllm.LLM with `data_parallel_size=N`.

* One process per rank (vLLM's `VLLM_DP_*` variables); prompts go to whichever rank is free.
* A rank that dies costs its prompts in flight one retry on the others, and is reported.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import socket
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
from tqdm import tqdm
from vllm.logger import init_logger

from vllm_dwdp.engine.rank_process import serve_rank

logger = init_logger("vllm.dwdp")
DEFAULT_MAX_IN_FLIGHT = 64
SHUTDOWN_S = 30.0
ORPHANS_S = 2.0


class RankDied(RuntimeError):
    """A rank's process ended, and nothing was left to do its work."""


@dataclass
class Rank:
    """The parent's end of one rank."""

    index: int
    process: Any
    pipe: Any
    in_flight: set[int] = field(default_factory=set)
    family: list[psutil.Process] = field(default_factory=list)

    def join(self) -> None:
        """Wait for its end; a rank that was killed leaves its engine and worker, which end here."""
        self.process.join(SHUTDOWN_S)
        if self.process.is_alive():
            self.process.kill()
        for process in psutil.wait_procs(self.family, timeout=ORPHANS_S)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


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
        self._max_in_flight = max_in_flight
        context = multiprocessing.get_context("spawn")
        port = _free_port()
        options = {"model": model, **options}
        self._ranks = [
            _start_rank(context, index, data_parallel_size, port, options)
            for index in range(data_parallel_size)
        ]
        self._finalizer = weakref.finalize(self, _end_ranks, self._ranks)
        for rank in list(self._ranks):
            self._wait_ready(rank)

    def generate(
        self,
        prompts: Any,
        sampling_params: Any = None,
        *,
        use_tqdm: bool = True,
        **options: Any,
    ) -> list[Any]:
        """As vllm.LLM.generate: one RequestOutput per prompt, in their order."""
        if isinstance(prompts, str | dict):
            prompts = [prompts]
        return self._run("generate", list(prompts), sampling_params, use_tqdm, options)

    def chat(
        self,
        messages: Any,
        sampling_params: Any = None,
        use_tqdm: bool = True,
        **options: Any,
    ) -> list[Any]:
        """As vllm.LLM.chat: one conversation or a list of them."""
        if messages and isinstance(messages[0], dict):
            messages = [messages]
        return self._run("chat", list(messages), sampling_params, use_tqdm, options)

    def dwdp_stats(self) -> list[dict[str, Any]]:
        """What each living rank owns, maps and has run; sizes in bytes."""
        for rank in self._ranks:
            rank.pipe.send(("stats",))
        return [rank.pipe.recv()[1] for rank in self._ranks]

    def shutdown(self) -> None:
        """End all ranks; also happens when the object goes or the program ends."""
        self._finalizer()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    def _run(
        self, kind: str, prompts: Sequence[Any], params: Any, use_tqdm: bool, options: Any
    ) -> list[Any]:
        if isinstance(params, Sequence) and len(params) != len(prompts):
            raise ValueError(f"expected {len(prompts)} sampling_params, got {len(params)}.")
        job = Job(kind, prompts, params, options)
        with tqdm(total=len(prompts), desc="Processed prompts", disable=not use_tqdm) as bar:
            while job.num_open:
                self._dispatch(job)
                bar.update(self._collect(job))
        return job.results()

    def _dispatch(self, job: "Job") -> None:
        """Hand waiting prompts to the least busy ranks with room."""
        while job.waiting:
            rank = min(self._ranks, key=lambda r: len(r.in_flight), default=None)
            if rank is None:
                raise RankDied("no dwdp rank is left to work on the prompts; see the log above.")
            if len(rank.in_flight) >= self._max_in_flight:
                return
            index = job.waiting.popleft()
            rank.in_flight.add(index)
            try:
                rank.pipe.send(job.message(index))
            except OSError:
                self._bury(rank, job)

    def _collect(self, job: "Job") -> int:
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
                self._bury(rank, job)
                continue
            index, result = body
            rank.in_flight.discard(index)
            job.finish(index, result, is_error=kind == "refused")
            num_done += 1
        return num_done

    def _bury(self, rank: Rank, job: "Job") -> None:
        self._ranks.remove(rank)
        rank.join()
        logger.error(
            "dwdp rank %d ended (exit code %s); its %d prompts in flight are tried once more on "
            "the other ranks.",
            rank.index,
            rank.process.exitcode,
            len(rank.in_flight),
        )
        for index in sorted(rank.in_flight):
            job.retry(index, rank.index)

    def _wait_ready(self, rank: Rank) -> None:
        try:
            kind, body = rank.pipe.recv()
        except EOFError:
            kind, body = "failed", "its process ended; see the log above"
        if kind != "ready":
            self.shutdown()
            raise RankDied(f"dwdp rank {rank.index} could not start: {body}")
        rank.family = psutil.Process(rank.process.pid).children(recursive=True)


class Job:
    """The prompts of one call: which wait, which ended, which were tried before."""

    def __init__(self, kind: str, prompts: Sequence[Any], params: Any, options: Any) -> None:
        self._kind = kind
        self._prompts = prompts
        self._params = params
        self._options = options
        self._outputs: list[Any] = [None] * len(prompts)
        self._errors: dict[int, str] = {}
        self._retried: set[int] = set()
        self.waiting = deque(range(len(prompts)))
        self.num_open = len(prompts)

    def message(self, index: int) -> tuple[Any, ...]:
        params = self._params[index] if isinstance(self._params, Sequence) else self._params
        return self._kind, index, self._prompts[index], params, self._options

    def finish(self, index: int, result: Any, *, is_error: bool) -> None:
        self.num_open -= 1
        if is_error:
            self._errors[index] = result
        else:
            self._outputs[index] = result

    def retry(self, index: int, rank: int) -> None:
        if index in self._retried:
            self.finish(index, f"dwdp rank {rank} died with it, as one did before", is_error=True)
            return
        self._retried.add(index)
        self.waiting.appendleft(index)

    def results(self) -> list[Any]:
        """All outputs; raises ValueError with the first prompt that was refused."""
        if self._errors:
            index = min(self._errors)
            raise ValueError(
                f"{len(self._errors)} of {len(self._outputs)} prompts failed, first prompt "
                f"{index}: {self._errors[index]}"
            )
        return self._outputs


def _start_rank(context: Any, index: int, size: int, port: int, options: dict[str, Any]) -> Rank:
    environment = {
        "VLLM_DP_RANK": str(index),
        "VLLM_DP_RANK_LOCAL": str(index),
        "VLLM_DP_SIZE": str(size),
        "VLLM_DP_MASTER_IP": "127.0.0.1",
        "VLLM_DP_MASTER_PORT": str(port),
    }
    ours, theirs = context.Pipe()
    arguments = (theirs, environment if size > 1 else {}, options)
    process = context.Process(target=serve_rank, args=arguments, name=f"dwdp-rank-{index}")
    process.start()
    theirs.close()
    return Rank(index, process, ours)


def _end_ranks(ranks: list[Rank]) -> None:
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
