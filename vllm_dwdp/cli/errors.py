# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The error that ends a command with one sentence, and exit codes that scripts can use."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit status says."""

    OK = 0
    NEGATIVE = 1
    """The command ran, and its answer is no: a check of `doctor` failed, for example."""
    BAD_INPUT = 2
    """Typer ends with the same status when options are wrong."""
    FAILED = 3
    """The command couldn't do its work on this machine."""


class CommandError(Exception):
    """Ends the command with this sentence on standard error, and with `code`."""

    def __init__(self, sentence: str, code: ExitCode = ExitCode.BAD_INPUT) -> None:
        super().__init__(sentence)
        self.code = code
