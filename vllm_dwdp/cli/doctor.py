# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp doctor`: what this host and this installation can do, for a bug report."""

import io
import json
import sys
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from vllm_dwdp.cli.errors import ExitCode
from vllm_dwdp.doctor import report
from vllm_dwdp.doctor.examination import Line, examine
from vllm_dwdp.doctor.finding import Status
from vllm_dwdp.doctor.groups import GROUPS
from vllm_dwdp.doctor.header import versions
from vllm_dwdp.doctor.host import DEFAULT_TIME_LIMIT_S, Host, Options

STYLES = {
    Status.OK: "green",
    Status.WARN: "yellow",
    Status.FAIL: "bold red",
    Status.NOT_HERE: "dim",
}


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, see docs/doctor.md.")
    ] = False,
    dwdp_size: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, show_default="2", help="How many ranks are to run on this host."
        ),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a check counts as one that hangs.")
    ] = DEFAULT_TIME_LIMIT_S,
) -> None:
    """Check what this host and this installation can do.

    The output has no secret and no name of this host, so that it can go into a bug report.

    The exit code is 1 if a check fails.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    options = Options(dwdp_size, time_limit)
    lines = examine(GROUPS, Host(options))
    if as_json:
        found = list(lines)
        print(json.dumps(report.to_json(versions(), options, found), indent=2))
    else:
        found = _print(lines)
    if any(line.finding.status is Status.FAIL for line in found):
        sys.exit(ExitCode.NEGATIVE)


def _print(lines: Iterable[Line]) -> list[Line]:
    """Print each line as soon as it is known. Colours are for terminals only."""
    console = Console(soft_wrap=True, highlight=False, force_terminal=sys.stdout.isatty())
    console.print(report.head(versions()), markup=False)
    found: list[Line] = []
    for line in lines:
        if not found or found[-1].group != line.group:
            console.print(f"\n{line.group}", style="bold", markup=False)
        is_repeated = bool(found) and found[-1].finding.remedy == line.finding.remedy
        for row in report.to_text(line, with_remedy=not is_repeated):
            console.print(_coloured(row, line.finding.status))
        found.append(line)
    console.print(f"\n{report.tail(found)}", markup=False)
    return found


def _coloured(row: str, status: Status) -> Text:
    text = Text(row)
    if row.startswith(f"  {status.value} "):
        text.stylize(STYLES[status], 0, len(status.value) + 2)
    return text
