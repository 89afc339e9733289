# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ends a rank when its parent ends or asks for it, whatever the rank is doing at that time.

The main thread may be loading a model or waiting for an engine. A SystemExit is raised there, and
the thread gets some time to end its engine. Processes that are left after that are killed.
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
    """A thread that ends this process. Made in the rank's main thread, before long work begins.

    It watches the parent by its process id, because a fork of the parent may keep the pipe open.
    """

    def __init__(self, parent_pid: int) -> None:
        self._parent_pid = parent_pid
        self._is_asked = threading.Event()
        self._has_begun = False
        signal.signal(signal.SIGTERM, self._interrupt)
        threading.Thread(target=self._watch, name="dwdp-ending", daemon=True).start()

    def ask(self) -> None:
        """Have the process end soon. Any thread may call this."""
        self._is_asked.set()

    def begin(self) -> None:
        """Note that the main thread is ending, so that a signal no longer interrupts it."""
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
    """Kill what is left of the engine and its worker, and exit without finalising Python.

    Finalising would wait for child processes, and takes seconds with so many modules loaded.
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
