# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The parent's handle of one rank of an offline job: its process, its pipe, its descendants."""

import contextlib
import multiprocessing
import os
import pickle
import queue
import threading
import time
from typing import Any

import psutil

from vllm_dwdp.offline.errors import RankDied
from vllm_dwdp.offline.parcels import Answer, opened, packed, packed_call
from vllm_dwdp.offline.pickled_options import PickledOptions
from vllm_dwdp.offline.rank_process import serve_rank

ORPHANS_S = 2.0
EXIT_S = 2.0
NOT_BEGUN = (
    "its process ended while it imported the script that builds the LLM, as each rank does; put "
    "what the script does in a file, under `if __name__ == '__main__':`"
)


class RankHandle:
    """One rank, with two threads that read and write its pipe.

    The threads keep a full pipe from blocking either end, and a KeyboardInterrupt from cutting a
    message in two. The rank's messages arrive in `news`, as (handle, message).
    """

    def __init__(self, index: int, process: Any, pipe: Any, news: queue.SimpleQueue[Any]) -> None:
        self.index = index
        self.process = process
        self.in_flight: set[int] = set()
        self._pipe = pipe
        self._news = news
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._called: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._has_begun = False
        self._call_turn = threading.Lock()
        self._join_turn = threading.Lock()
        self._family: list[psutil.Process] = []
        for pump in (self._read, self._write):
            threading.Thread(target=pump, name=f"dwdp-rank-{index}", daemon=True).start()

    @classmethod
    def start(
        cls,
        index: int,
        job_size: int,
        port: int,
        options: PickledOptions,
        news: queue.SimpleQueue[Any],
    ) -> "RankHandle":
        """Start a process that builds a vllm.LLM from the options; ranks meet at `port`."""
        environment = {
            "VLLM_DP_RANK": str(index),
            "VLLM_DP_RANK_LOCAL": str(index),
            "VLLM_DP_SIZE": str(job_size),
            "VLLM_DP_MASTER_IP": "127.0.0.1",
            "VLLM_DP_MASTER_PORT": str(port),
        }
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, os.getpid(), environment if job_size > 1 else {}, options)
        process = context.Process(target=serve_rank, args=arguments, name=f"dwdp-rank-{index}")
        process.start()
        theirs.close()
        return cls(index, process, ours, news)

    def send_items(self, kind: str, items: list[tuple[int, Any]]) -> None:
        """Send items to render or to run (`kind`). Raises TypeError if one doesn't pickle."""
        parcels = [(item_id, packed(item)) for item_id, item in items]
        self.in_flight.update(item_id for item_id, _ in items)
        self.send((kind, parcels))

    def send(self, message: tuple[Any, ...] | None) -> None:
        """Have the writing thread send a message. `news`, not this, tells of a rank that died."""
        self._outbox.put(pickle.dumps(message))

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Have the rank call a method of its vllm.LLM; returns the result.

        Raises what the method raises, RankDied, and TypeError for arguments that don't pickle.
        """
        with self._call_turn:
            self.send(("call", packed_call(name, args, kwargs)))
            if (found := self._called.get()) is None:
                self._called.put(None)  # for the next call
                raise RankDied(f"dwdp rank {self.index} ended; see the log above.")
        answer = opened(found)
        if answer.is_error:
            raise answer.content
        return answer.content

    def ask_to_end(self) -> None:
        """Ask the rank to end its engine and itself; terminate it if it has sent no message yet."""
        self.send(None)
        if not self._has_begun:
            self.process.terminate()

    def join(self, deadline: float) -> None:
        """Wait until the rank has ended, and kill it at the deadline (of `time.monotonic`).

        Its engine and worker are killed, too, if they outlive it.
        """
        with self._join_turn:
            self.process.join(max(0.0, deadline - time.monotonic()))
            if self.process.is_alive():
                self.process.kill()
                self.process.join()
        for process in psutil.wait_procs(self._family, timeout=ORPHANS_S)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def note_family(self) -> None:
        """Note the rank's engine and worker while it lives, to end them if it is killed."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._family = psutil.Process(self.process.pid).children(recursive=True) or self._family

    def _read(self) -> None:
        try:
            while True:
                self._sort(*self._pipe.recv())
        except (EOFError, OSError):
            pass  # the rank ended
        finally:
            self._outbox.put(None)
            self._called.put(None)
            self._news.put((self, ("ended", self._how_ended())))

    def _sort(self, kind: str, body: Any) -> None:
        self._has_begun = True
        if kind == "called":
            self._called.put(body)
        else:
            found = [opened(answer) for answer in body] if kind == "answers" else body
            self._news.put((self, (kind, found)))

    def _how_ended(self) -> str:
        with self._join_turn:
            self.process.join(EXIT_S)
            exit_code = self.process.exitcode
        if not self._has_begun and exit_code == 1:
            return NOT_BEGUN
        return f"its process ended (exit code {exit_code})"

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (data := self._outbox.get()) is not None:
                self._pipe.send_bytes(data)
        self._pipe.close()
