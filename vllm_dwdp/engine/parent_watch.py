# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A process ends when the one that started it is gone, even if that one was killed.

* The watch is a thread that sleeps on the parent's process descriptor; it polls nothing.
* First it asks its process to end in order. What doesn't end so is ended by the kernel's alarm
  after 10 seconds: threads can do nothing in an interpreter that hangs while it finalises.
* A process that Python's multiprocessing did not start has no such parent: Ray ends its own.
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
    """End in order, or by the kernel's alarm if this process can't: its threads may hang."""
    signal.alarm(GRACE_S)
    end_self()


def end_workers() -> None:
    """vLLM ends an engine that loses its workers, once it has told its clients."""
    workers = multiprocessing.active_children()
    if not workers:
        os._exit(1)
    for worker in workers:
        worker.kill()


def end_with_parent(ask_to_end: Callable[[], None] = end_self) -> None:
    """Start the watch of this process over the one that started it, if there is none yet."""
    _start_watch(os.getpid(), ask_to_end)


@functools.cache
def _start_watch(own_pid: int, ask_to_end: Callable[[], None]) -> None:
    """Once in each process: a forked one has none of its parent's threads."""
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
    except OSError:  # kernels before 5.3; a pipe tells it too, if no forked sibling holds it
        parent.join()
        return
    if _started_after_this(parent.pid):
        return
    ended = select.poll()
    ended.register(descriptor, select.POLLIN)
    ended.poll()


def _started_after_this(pid: int) -> bool:
    """Whether the parent's process id belongs to another process by now, or to none."""
    try:
        return start_ticks(pid) > start_ticks(os.getpid())
    except OSError:
        return True
