# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Finds in an engine's log why it failed: the front-end's own error says only that it did."""

import re

_CONFIG_ERROR = re.compile(r"ConfigError: (.+)$", re.MULTILINE)
"""dwdp's refusal in a traceback."""

_OPTION_ERROR = re.compile(r"Value error, (.+?)(?: \[type=.*)?$", re.MULTILINE)
"""A refusal in an error of pydantic, with which vLLM checks options; not all of them are dwdp's."""

_ERROR = re.compile(r"^(?:\(.*?\] )?(\w*(?:Error|Exception)\b(?:: .*)?)$", re.MULTILINE)
"""The last line of a traceback, which vLLM's logger may have put the name of a process before."""

_FOLLOWS = ("Engine core initialization failed", "WorkerProc initialization failed")
"""Parts of errors that follow from the error of another process."""


def refusal(error: str, log: str) -> str | None:
    """The sentence with which dwdp refused to start; None if it didn't refuse.

    error: of vllm_dwdp.LLM. It is that sentence alone if dwdp refused the options; if vLLM did, it
    begins with the rank that could not start.
    """
    if found := _CONFIG_ERROR.search(log):
        return found[1]
    return next((s for s in _OPTION_ERROR.findall(log) if error.endswith(f"RankDied: {s}")), None)


def cause(log: str) -> str | None:
    """The last error in the log of stock vLLM that doesn't follow from another."""
    errors = [text for text in _ERROR.findall(log) if not any(part in text for part in _FOLLOWS)]
    return errors[-1] if errors else None
