# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The parent's end of one rank of an offline job: its process, its pipe, its orphans."""

import contextlib
import multiprocessing
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
        """Hand it a prompt; it is in flight unless the prompt itself can't be sent."""
        self.in_flight.add(prompt_id)
        try:
            self.pipe.send(message)
        except OSError:
            raise  # the rank died, the prompt died with it
        except Exception:
            self.in_flight.discard(prompt_id)
            raise

    def stats(self) -> dict[str, Any]:
        """What its worker says of itself; raises RankDied."""
        try:
            self.pipe.send(("stats",))
            while (message := self.pipe.recv())[0] != "stats":
                self.in_flight.discard(message[1][0])  # of a call that was broken off
            return dict(message[1])
        except (EOFError, OSError) as error:
            raise RankDied(f"dwdp rank {self.index} ended; see the log above.") from error

    def wait_ready(self) -> None:
        """Until its engine is up; raises RankDied. Its family is noted early: it may be killed."""
        try:
            while not self.pipe.poll(FAMILY_S):
                self._note_family()
            kind, body = self.pipe.recv()
        except (EOFError, OSError):
            kind, body = "failed", "its process ended; see the log above"
        if kind != "ready":
            raise RankDied(f"dwdp rank {self.index} could not start: {body}")
        self._note_family()

    def join(self) -> None:
        """Wait for its end; a rank that was killed leaves its engine and worker, which end here."""
        self.process.join(SHUTDOWN_S)
        if self.process.is_alive():
            self.process.kill()
        for process in psutil.wait_procs(self.family, timeout=ORPHANS_S)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _note_family(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.family = psutil.Process(self.process.pid).children(recursive=True) or self.family
