# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One rank of an offline job: a process with a vllm.LLM, fed one request at a time.

Messages from the parent: ("generate" | "chat", prompt_id, prompt, sampling_params, options),
("stats",) and None, which ends it. Messages back: ("ready", None), ("output", (prompt_id, output)),
("refused", (prompt_id, text)), ("stats", stats), ("failed", text).
"""

import os
import queue
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError

from vllm_dwdp.engine.child_watch import ending_with_its_children
from vllm_dwdp.engine.compat import external_request_id


def serve_rank(pipe: Connection, environment: dict[str, str], options: dict[str, Any]) -> None:
    """Main function of the rank's process."""
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    llm = None
    try:
        from vllm import LLM

        llm = LLM(distributed_executor_backend="dwdp", **options)
        pipe.send(("ready", None))
        with ending_with_its_children():
            RankLoop(llm, pipe).run()
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Exception:
        pipe.send(("failed", traceback.format_exc(limit=-4)))
    finally:
        pipe.close()
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()


class RankLoop:
    """Feeds the engine between steps, so that its batch is refilled as requests finish."""

    def __init__(self, llm: Any, pipe: Connection) -> None:
        self._llm = llm
        self._pipe = pipe
        self._inbox: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._prompt_of: dict[str, int] = {}

    def run(self) -> None:
        threading.Thread(target=self._read, name="dwdp-inbox", daemon=True).start()
        while self._take_messages():
            if self._prompt_of:
                self._step()

    def _read(self) -> None:
        """Empty the pipe at once: both ends may be writing more than it holds."""
        try:
            while (message := self._pipe.recv()) is not None:
                self._inbox.put(message)
        except (EOFError, OSError):
            pass  # the parent ended
        self._inbox.put(None)

    def _take_messages(self) -> bool:
        """Take what came; wait for something when idle. False when the parent ends the rank."""
        while not self._prompt_of or not self._inbox.empty():
            message = self._inbox.get()
            if message is None:
                return False
            if message[0] == "stats":
                self._pipe.send(("stats", self._llm.collective_rpc("dwdp_stats")[0]))
            else:
                self._enqueue(*message)
        return True

    def _enqueue(self, kind: str, prompt_id: int, prompt: Any, params: Any, options: Any) -> None:
        enqueue = self._llm.enqueue_chat if kind == "chat" else self._llm.enqueue
        try:
            (request_id,) = enqueue([prompt], params, use_tqdm=False, **options)
        except EngineDeadError:
            raise
        except Exception as error:
            self._pipe.send(("refused", (prompt_id, f"{type(error).__name__}: {error}")))
        else:
            self._prompt_of[external_request_id(request_id)] = prompt_id

    def _step(self) -> None:
        for output in self._llm.llm_engine.step():
            if output.finished:
                prompt_id = self._prompt_of.pop(output.request_id)
                output.request_id = str(prompt_id)  # the engine's own repeats on other ranks
                self._pipe.send(("output", (prompt_id, output)))
