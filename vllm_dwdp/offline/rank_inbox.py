# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Reads a rank's pipe in a thread, so that the parent never blocks on a full pipe."""

import queue
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class RankInbox:
    """The parent's messages, read from construction on.

    on_end: called when the parent ends or asks this rank to end.
    """

    def __init__(self, pipe: Connection, *, on_end: Callable[[], None]) -> None:
        self._pipe = pipe
        self._on_end = on_end
        self._messages: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="dwdp-inbox", daemon=True).start()

    def is_empty(self) -> bool:
        return self._messages.empty()

    def take(self) -> tuple[Any, ...]:
        """Wait for the next message, and return it."""
        return self._messages.get()

    def _read(self) -> None:
        try:
            while (message := self._pipe.recv()) is not None:
                self._messages.put(message)
        except (EOFError, OSError):
            pass  # the parent ended
        finally:
            self._on_end()
