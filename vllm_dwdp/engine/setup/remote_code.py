# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Lets the processes of one host copy a model's own Python files (`trust_remote_code`) in turn.

Transformers copies these files to a cache, from which it imports them, and nothing keeps another
process from importing a file that is half written. Ranks that start together do that.
"""

import functools
import logging
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LOCK_NAME = ".dwdp.lock"
WAIT_S = 120.0
"""So long a process waits for others; then it copies as it would without the lock."""

logger = logging.getLogger("vllm.dwdp")


def copy_in_turn() -> None:
    """Make Transformers' `get_cached_module_file` hold a lock of its cache in this process.

    Later processes find the files whole, and don't write them again.
    """
    from transformers import dynamic_module_utils as modules

    stock_copy = modules.get_cached_module_file
    if getattr(stock_copy, "is_in_turn", False):
        return
    folder: str = vars(modules)["HF_MODULES_CACHE"]
    lock = FileLock(Path(folder) / LOCK_NAME, timeout=WAIT_S)

    @functools.wraps(stock_copy)
    def copy(*args: Any, **kwargs: Any) -> Any:
        is_held = _acquire(lock)
        try:
            return stock_copy(*args, **kwargs)
        finally:
            if is_held:
                lock.release()

    copy.is_in_turn = True  # type: ignore[attr-defined]
    modules.get_cached_module_file = copy


def _acquire(lock: FileLock) -> bool:
    """Whether the lock is held now; some network file systems have no locks."""
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError, Timeout) as error:
        logger.warning(
            "Can't lock Transformers' cache of modules: %s. If processes that start together "
            "fail to import a model's own code, start one of them first.",
            error,
        )
        return False
    return True
