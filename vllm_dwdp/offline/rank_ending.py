# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank ends when its parent does or asks for it, whatever it is doing at that time.

The main thread may be loading a model or waiting for an engine: it gets a SystemExit there, and
some time to end its engine. What is left after that is killed.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from typing import NoReturn

import psutil

POLL_S = 1.0
GRACE_S = 8.0


class RankEnding:
    """Made in the main thread of a rank, before anything that takes long.

    The parent is watched by its process id: a pipe stays open while a fork of the parent lives.
    """

    def __init__(self, parent_pid: int) -> None:
        self._parent_pid = parent_pid
        self._is_asked = threading.Event()
        self._has_begun = False
        signal.signal(signal.SIGTERM, self._interrupt)
        threading.Thread(target=self._watch, name="dwdp-ending", daemon=True).start()

    def ask(self) -> None:
        """End soon. From any thread."""
        self._is_asked.set()

    def begin(self) -> None:
        """The main thread is ending: nothing may interrupt that any more."""
        self._has_begun = True

    def _interrupt(self, *_: object) -> None:
        if not self._has_begun:
            self._has_begun = True
            sys.exit(0 if self._is_asked.is_set() else 128 + signal.SIGTERM)

    def _watch(self) -> None:
        while not self._is_asked.wait(POLL_S) and os.getppid() == self._parent_pid:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        _kill_children()
        os._exit(1)


def end_at_once(exit_code: int) -> NoReturn:
    """Kill what is left of the engine and its worker, then leave without the interpreter's own end.

    That would wait for child processes, and takes seconds with so much loaded.
    """
    _kill_children()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)


def _kill_children() -> None:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
