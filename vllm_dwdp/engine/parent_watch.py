# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ends a process when its parent (the process that started it) has ended or was killed.

* The watch is a thread that sleeps on the parent's process descriptor; it polls nothing.
* The watch first asks its process to end in order. If it hasn't after 10 seconds, the operating
  system's alarm ends it: a thread can do nothing in an interpreter that hangs while it finalises.
* Only a process that Python's multiprocessing started is watched. Ray ends its processes itself.
"""

import functools
import logging
import multiprocessing
import os
import select
import signal
import threading
from collections.abc import Callable
from typing import Any

from vllm_dwdp.group.meet.process_identity import start_ticks

logger = logging.getLogger("vllm.dwdp")
GRACE_S = 10


def end_self() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def end_for_good() -> None:
    """End this process in order or, if its threads hang, by the operating system's alarm."""
    signal.alarm(GRACE_S)
    end_self()


def end_workers() -> None:
    """Kill the workers of this engine, or end the process if it has none.

    vLLM tells its clients that the engine lost its workers, and then ends the engine.
    """
    workers = multiprocessing.active_children()
    if not workers:
        os._exit(1)
    for worker in workers:
        worker.kill()


def end_with_parent(ask_to_end: Callable[[], None] = end_self) -> None:
    """Start to watch the parent of this process, unless this process does so already.

    ask_to_end: called when the parent is gone.
    """
    _start_watch(os.getpid(), ask_to_end)


@functools.cache
def _start_watch(own_pid: int, ask_to_end: Callable[[], None]) -> None:
    """Runs once for each process id: a forked process inherits the cache, but not the thread."""
    if (parent := multiprocessing.parent_process()) is not None:
        arguments = (parent, own_pid, ask_to_end)
        threading.Thread(target=_watch, args=arguments, name="dwdp-parent", daemon=True).start()


def _watch(parent: Any, own_pid: int, ask_to_end: Callable[[], None]) -> None:
    _wait_for_end(parent)
    signal.alarm(GRACE_S)
    logger.error(
        "Process %d ends, because %s (process %d), which started it, is gone.",
        *(own_pid, parent.name, parent.pid),
    )
    ask_to_end()


def _wait_for_end(parent: Any) -> None:
    try:
        descriptor = os.pidfd_open(parent.pid)
    except ProcessLookupError:
        return
    except OSError:  # Linux before 5.3; join() waits for a pipe, which a forked sibling may hold
        parent.join()
        return
    if _started_after_this(parent.pid):
        return
    ended = select.poll()
    ended.register(descriptor, select.POLLIN)
    ended.poll()


def _started_after_this(pid: int) -> bool:
    """Whether a parent's process id belongs to another process by now, or to none."""
    try:
        return start_ticks(pid) > start_ticks(os.getpid())
    except OSError:
        return True
