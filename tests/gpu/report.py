# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The outcome of a check, and its section of the results in Markdown."""

import time
import traceback
from dataclasses import dataclass, field
from enum import StrEnum

from parts import ERROR, NOT_RUN, RAN


class Status(StrEnum):
    """How a check ended. A figure outside its range is no error; a person judges it."""

    PASSED = "passed"
    MISSED = "figures outside their ranges"
    ERROR = "error"
    NOT_RUN = "not run"
    REHEARSED = "rehearsed"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check.

    lines: what the check reported; see figures.py. why: an error of the check as a whole.
    """

    check: str
    lines: list[dict] = field(default_factory=list)
    why: str = ""
    seconds: float = 0.0
    is_rehearsal: bool = False
    is_left_out: bool = False

    @property
    def figures(self):
        return [line for line in self.lines if "figures" in line]

    @property
    def parts(self):
        return [line for line in self.lines if "part" in line]

    @property
    def errors(self):
        """(place, text) of each error."""
        of_parts = [(p["part"], p["why"]) for p in self.parts if p["outcome"] == ERROR]
        return [*of_parts, *([("the check", self.why)] if self.why else [])]

    @property
    def misses(self):
        """Figures outside their ranges. A rehearsal has none, since its figures mean nothing."""
        if self.is_rehearsal:
            return []
        return [f"{line['title']}: {name}" for line in self.figures for name in line["misses"]]

    @property
    def status(self):
        if self.is_left_out:
            return Status.NOT_RUN
        if self.errors:
            return Status.ERROR
        if not any(line["outcome"] == RAN for line in self.parts):
            return Status.NOT_RUN
        if self.is_rehearsal:
            return Status.REHEARSED
        return Status.MISSED if self.misses else Status.PASSED

    @property
    def sentence(self):
        """A line for the terminal: status, missed figures, parts that didn't run or failed."""
        parts = [f"{p['part']}: {p['outcome']}" for p in self.parts if p["outcome"] != RAN]
        details = [*parts, *self.misses, *([self.why.splitlines()[-1]] if self.why else [])]
        text = f"{self.check}: {self.status} ({self.seconds:.0f} s)"
        return "; ".join([text, *details])

    def section(self):
        """The check's section of the results, in Markdown."""
        heading = f"## {self.check}: {self.status}, {self.seconds:.0f} s"
        blocks = [heading, *map(_figures_table, self.figures)]
        if self.misses:
            blocks.append("Outside of its range: " + "; ".join(self.misses) + ".")
        blocks += [f"Not run: {p['part']} ({p['why']})." for p in self._not_run()]
        blocks += [f"Error in {where}:\n\n```\n{text.strip()}\n```" for where, text in self.errors]
        return "\n\n".join(blocks) + "\n\n"

    def summary_rows(self):
        """The check's rows (part, outcome, seconds) in the summary table."""
        ran = Status.REHEARSED.value if self.is_rehearsal else RAN
        rows = [
            (
                f"{self.check}: {p['part']}",
                ran if p["outcome"] == RAN else p["outcome"],
                p["seconds"],
            )
            for p in self.parts
        ]
        return rows or [(self.check, self.status.value, round(self.seconds, 1))]

    def _not_run(self):
        return [line for line in self.parts if line["outcome"] == NOT_RUN]


def outcome_of(name, run, *, title=None, is_rehearsal=False):
    """The outcome of `run`, a function that returns figures without expected ranges."""
    start = time.monotonic()
    figures, ended, why = {}, RAN, ""
    try:
        figures = run()
    except Exception:
        ended, why = ERROR, traceback.format_exc(limit=-4)
    seconds = time.monotonic() - start
    lines = [{"part": name, "outcome": ended, "seconds": round(seconds, 1), "why": why}]
    if figures:
        lines.append({"title": title or name, "figures": figures, "expected": {}, "misses": []})
    return Outcome(name, lines, seconds=seconds, is_rehearsal=is_rehearsal)


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _figures_table(line):
    rows = [
        (name, value, line["expected"].get(name, "")) for name, value in line["figures"].items()
    ]
    return f"### {line['title']}\n\n" + table(("figure", "value", "expected"), rows)
