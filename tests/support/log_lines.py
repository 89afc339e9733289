# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What dwdp logs, whatever vLLM and pytest do with the loggers above its own."""

import contextlib
import logging


@contextlib.contextmanager
def log_lines(level):
    """The messages of at least this level, as they come."""
    logger, found = logging.getLogger("vllm.dwdp"), []
    handler = logging.Handler(level)
    handler.emit = lambda record: found.append(record.getMessage())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield found
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
