# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Collects what dwdp logs, however vLLM and pytest set up the loggers above its own."""

import contextlib
import logging


@contextlib.contextmanager
def log_lines(level):
    """A list to which dwdp's messages of at least this level are added in the `with` block."""
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
