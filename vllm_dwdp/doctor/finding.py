# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a check finds: a status, a sentence, and what to do if all is not well."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check ended. Only FAIL makes the command's exit code 1."""

    OK = "ok"
    WARN = "warn"
    """Serving works, or may work; something is slower or less than it could be."""
    FAIL = "fail"
    """Serving with dwdp can't work as long as this stays."""
    NOT_HERE = "not here"
    """This machine or installation doesn't have what the check looks at, which may be right."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check. Every status but OK has a remedy, which says what to do."""

    status: Status
    text: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if (self.status is Status.OK) == bool(self.remedy):
            raise ValueError(f"'{self.status}' and the remedy '{self.remedy}' can't go together")


def ok(text: str) -> Finding:
    return Finding(Status.OK, text)


@dataclass(frozen=True)
class Case:
    """One way in which a check can end other than with OK.

    when: the condition, as the end of a sentence that begins with the status. remedy: sentences
    that say what to do; names in braces stand for values that `found` is given.
    """

    status: Status
    when: str
    remedy: str

    def found(self, text: str, **values: object) -> Finding:
        return Finding(self.status, text, self.remedy.format(**values))
