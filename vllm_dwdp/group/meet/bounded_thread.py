# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A thread for calls that may never return."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class BoundedThread:
    """Runs calls one after the other, each with a time limit for its caller.

    torch's TCPStore client needs this: it waits without limit for a host that is stopped, and
    for a service that accepts connections but isn't a store.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], Any], timeout_s: float) -> Any:
        """The function's result; raises what it raises, or TimeoutError."""
        future: Future[Any] = Future()
        self._calls.put((future, function))
        return future.result(timeout_s)

    def close(self, timeout_s: float) -> None:
        """End the thread after the calls given so far; wait `timeout_s` seconds for that at most.

        No error if the time is up: a call that hangs keeps the thread and what it refers to.
        """
        self._calls.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (job := self._calls.get()) is not None:
            _run_job(*job)
            del job


def _run_job(future: "Future[Any]", function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
