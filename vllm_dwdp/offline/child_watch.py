# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ends a rank's process when its engine is killed: vllm.LLM would wait for the engine forever."""

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import threading
from collections.abc import Iterator

from vllm_dwdp.engine.request_path import EngineDeadError


@contextlib.contextmanager
def ending_with_its_children() -> Iterator[None]:
    """Within this context, raise EngineDeadError in the main thread when a child process ends."""
    is_over = threading.Event()
    children = multiprocessing.active_children()
    main_thread = threading.get_ident()

    def watch() -> None:
        multiprocessing.connection.wait([child.sentinel for child in children])
        if not is_over.is_set():
            signal.pthread_kill(main_thread, signal.SIGUSR1)

    def end(*_: object) -> None:
        if not is_over.is_set():
            ended = [child.name for child in children if not child.is_alive()]
            raise EngineDeadError(f"{', '.join(ended)} ended")

    signal.signal(signal.SIGUSR1, end)
    threading.Thread(target=watch, name="dwdp-watch", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
