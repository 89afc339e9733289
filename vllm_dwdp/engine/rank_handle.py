# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The parent's end of one rank of an offline job: its process, its pipe, its orphans."""

import contextlib
import multiprocessing
import multiprocessing.connection
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from vllm_dwdp.engine.rank_process import serve_rank

SHUTDOWN_S = 30.0
ORPHANS_S = 2.0
FAMILY_S = 0.5


class RankDied(RuntimeError):
    """A rank's process ended, and nothing was left to do its work."""


@dataclass
class RankHandle:
    """The parent's end of one rank."""

    index: int
    process: Any
    pipe: Any
    in_flight: set[int] = field(default_factory=set)
    family: list[psutil.Process] = field(default_factory=list)

    @classmethod
    def start(cls, index: int, job_size: int, port: int, options: dict[str, Any]) -> "RankHandle":
        """A new process that builds a vllm.LLM of `options`; ranks meet at `port`."""
        environment = {
            "VLLM_DP_RANK": str(index),
            "VLLM_DP_RANK_LOCAL": str(index),
            "VLLM_DP_SIZE": str(job_size),
            "VLLM_DP_MASTER_IP": "127.0.0.1",
            "VLLM_DP_MASTER_PORT": str(port),
        }
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, environment if job_size > 1 else {}, options)
        process = context.Process(target=serve_rank, args=arguments, name=f"dwdp-rank-{index}")
        process.start()
        theirs.close()
        return cls(index, process, ours)

    def send(self, prompt_id: int, message: tuple[Any, ...]) -> None:
        """Hand it a prompt, which is in flight then. Raises OSError when the rank is dead."""
        self.pipe.send(message)
        self.in_flight.add(prompt_id)

    def stats(self) -> dict[str, Any]:
        """What its worker says of itself; raises RankDied."""
        try:
            self.pipe.send(("stats",))
            while (message := self.pipe.recv())[0] in ("output", "refused"):
                self.in_flight.discard(message[1][0])  # of a call that was broken off
        except (EOFError, OSError) as error:
            raise RankDied(f"dwdp rank {self.index} ended; see the log above.") from error
        if message[0] != "stats":
            raise RankDied(f"dwdp rank {self.index} failed: {message[1]}")
        return dict(message[1])

    def terminate(self) -> None:
        """Ask a rank that is still starting to end; it reads no messages yet."""
        self.process.terminate()

    def join(self) -> None:
        """Wait for its end; a rank that was killed leaves its engine and worker, which end here."""
        self.process.join(SHUTDOWN_S)
        if self.process.is_alive():
            self.process.kill()
        for process in psutil.wait_procs(self.family, timeout=ORPHANS_S)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def note_family(self) -> None:
        """Its engine and worker, noted while it lives: it may be killed at any time."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.family = psutil.Process(self.process.pid).children(recursive=True) or self.family


def wait_ready(ranks: Sequence[RankHandle]) -> None:
    """Until all engines are up; raises RankDied as soon as one can't start."""
    starting = {rank.pipe: rank for rank in ranks}
    while starting:
        ready = multiprocessing.connection.wait(list(starting), timeout=FAMILY_S)
        for rank in starting.values():
            rank.note_family()
        for pipe in ready:
            _check_ready(starting.pop(pipe))


def _check_ready(rank: RankHandle) -> None:
    try:
        kind, body = rank.pipe.recv()
    except (EOFError, OSError):
        kind, body = "failed", "its process ended; see the log above"
    if kind != "ready":
        raise RankDied(f"dwdp rank {rank.index} could not start: {body}")
