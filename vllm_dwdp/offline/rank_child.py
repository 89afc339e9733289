# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One rank's process as a child of this process, with its pipe and its descendants."""

import contextlib
import multiprocessing
import os
from typing import Any

import psutil

from vllm_dwdp.offline.pickled_options import PickledOptions
from vllm_dwdp.offline.rank_process import serve_rank

ORPHANS_S = 2.0
NOT_BEGUN = (
    "its process ended while it imported the script that builds the LLM, as each rank does; put "
    "what the script does in a file, under `if __name__ == '__main__':`"
)


class RankChild:
    """The process of one rank. `receive` and `send` are for one thread each.

    They take and return pickled messages; rank_process.py lists them.
    """

    def __init__(self, process: Any, pipe: Any) -> None:
        self._process = process
        self._pipe = pipe
        self._family: list[psutil.Process] = []

    @classmethod
    def start(cls, index: int, environment: dict[str, str], options: PickledOptions) -> "RankChild":
        """Start a process that builds a vllm.LLM from the options."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, os.getpid(), environment, options)
        process = context.Process(target=serve_rank, args=arguments, name=f"dwdp-rank-{index}")
        process.start()
        theirs.close()
        return cls(process, ours)

    @property
    def exit_code(self) -> int | None:
        """None until `join` or `end` has seen the process ended."""
        return self._process.exitcode

    def how_ended(self, *, has_begun: bool) -> str:
        """has_begun: whether the rank has sent a message."""
        if not has_begun and self.exit_code == 1:
            return NOT_BEGUN
        return f"its process ended (exit code {self.exit_code})"

    def receive(self) -> bytes:
        """Wait for the next message of the rank. Raises EOFError or OSError once it has ended."""
        return bytes(self._pipe.recv_bytes())

    def send(self, message: bytes) -> None:
        """Send a message; waits while the pipe is full. Raises OSError once the rank has ended."""
        self._pipe.send_bytes(message)

    def close(self) -> None:
        """Close the pipe."""
        self._pipe.close()

    def note_family(self) -> None:
        """Note the rank's engine and worker while it lives, to end them if it is killed."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            self._family = process.children(recursive=True) or self._family

    def terminate(self) -> None:
        self._process.terminate()

    def join(self, timeout_s: float) -> None:
        """Wait until the process has ended, at most so long."""
        self._process.join(timeout_s)

    def end(self, timeout_s: float) -> None:
        """Wait until the process has ended, and kill it after so long."""
        self._process.join(timeout_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def end_family(self) -> None:
        """Kill the rank's engine and worker if they outlive it."""
        for process in psutil.wait_procs(self._family, timeout=ORPHANS_S)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
