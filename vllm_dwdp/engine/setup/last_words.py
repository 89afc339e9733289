# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Brings the reason why a job could not start from the rank that knows it to the user's terminal.

vLLM's front-end learns only that an engine ended. So a rank that can't start leaves a sentence on
the job's board. When the front-end ends with an error, it prints that sentence as its last line,
below the traceback and vLLM's messages about ending the other processes.
"""

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from vllm_dwdp.group.errors import GroupError
from vllm_dwdp.group.meet import job_board

KEY = "last words"
ENGINE_ENDED = ("Engine core initialization failed", "Engine core process")
"""How vLLM's errors begin when an engine could not start."""
WORKER_ENDED = "WorkerProc initialization failed"
"""Part of vLLM's error when a worker ended for any reason, even if it was killed."""


def left() -> str | None:
    """The sentence that says why this front-end's newest job could not start, if there is one."""
    return job_board.newest_note(KEY)


def leave(parallel_config: Any, error: BaseException, *, job_rank: int) -> None:
    """Leave the sentence of a rank that can't start; the job's first one counts. Never raises."""
    with contextlib.suppress(OSError):
        job_board.board_of(parallel_config).post(KEY, _sentence(error, job_rank))


@contextlib.contextmanager
def of_refused_options() -> Iterator[None]:
    """Around the check of a configuration: print its error again as the process's last line."""
    try:
        yield
    except Exception as error:
        job_board.remember(KEY, str(error))
        print_at_exit()
        raise


@functools.cache
def print_at_exit() -> None:
    """Have this process print the sentence as its last line.

    The `vllm` command always prints the sentence: with a headless server whose engine can't start,
    the command ends without an error. A user's script may have handled the failure, so it prints
    the sentence only if the error that ends the script is about it.

    Finalizers run in the reverse order of their creation. This one is made before vLLM's process
    managers, so it runs after theirs.
    """
    weakref.finalize(print_at_exit, _print)


class EngineFailure(logging.Handler):
    """Reads from vLLM's log why an engine could not start: vLLM reports it nowhere else.

    An engine that was told to end leaves no sentence: its error only follows from that.
    """

    LOGGER = "vllm.v1.engine.core"
    MESSAGE = "EngineCore failed to start."

    def __init__(self, parallel_config: Any, job_rank: int) -> None:
        super().__init__(logging.ERROR)
        self._parallel_config = parallel_config
        self._job_rank = job_rank
        self._is_told_to_end = False

    @classmethod
    def hear(cls, parallel_config: Any, job_rank: int) -> None:
        """Add a new handler to the logger of the engine in this process.

        In the main thread of a child process it also wraps the handlers of SIGINT and SIGTERM.
        """
        made = cls(parallel_config, job_rank)
        logging.getLogger(cls.LOGGER).addHandler(made)
        is_main_thread = threading.current_thread() is threading.main_thread()
        if is_main_thread and multiprocessing.parent_process() is not None:
            made._note_signals()

    def _note_signals(self) -> None:
        """Note signals before vLLM's handlers act on them, which leave no trace to look for."""
        for number in (signal.SIGINT, signal.SIGTERM):
            act = signal.getsignal(number)
            if callable(act):
                signal.signal(number, functools.partial(self._note, act))

    def _note(self, act: Callable[[int, Any], Any], number: int, frame: Any) -> None:
        self._is_told_to_end = True
        act(number, frame)

    def emit(self, record: logging.LogRecord) -> None:
        if self._is_told_to_end:
            return
        if record.msg == self.MESSAGE and record.exc_info and record.exc_info[1]:
            leave(self._parallel_config, record.exc_info[1], job_rank=self._job_rank)


def _sentence(error: BaseException, job_rank: int) -> str:
    if isinstance(error, GroupError):
        return str(error)
    if WORKER_ENDED in str(error):
        return (
            f"dwdp rank {job_rank} failed while starting: its worker ended; look for its last "
            "lines, and for the kernel's out-of-memory killer (dmesg)."
        )
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"dwdp rank {job_rank} failed while starting: {' '.join(text.split())}"


def _print() -> None:
    sentence = left()
    is_command = os.path.basename(sys.argv[0]) == "vllm"
    if sentence and (is_command or _is_about(getattr(sys, "last_value", None), sentence)):
        print(sentence, file=sys.stderr, flush=True)


def _is_about(error: BaseException | None, sentence: str) -> bool:
    """Whether the error that ends this process says the sentence, or that an engine ended."""
    while error is not None:
        if sentence in str(error) or str(error).startswith(ENGINE_ENDED):
            return True
        error = error.__cause__ or error.__context__
    return False
