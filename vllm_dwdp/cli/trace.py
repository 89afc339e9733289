# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp trace record` and `vllm-dwdp trace show`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as RichTable

from vllm_dwdp.cli.errors import CommandError, ExitCode
from vllm_dwdp.trace.errors import BadTrace, NoRecording
from vllm_dwdp.trace.page import page_of
from vllm_dwdp.trace.server import TracedServer, record
from vllm_dwdp.trace.tables import Table, notes_on, tables_of
from vllm_dwdp.trace.trace_file import Trace, read_trace

app = typer.Typer(no_args_is_help=True, help="Look into some steps of a running engine.")

Urls = Annotated[
    list[str],
    typer.Argument(
        help="Servers of the group, for example http://localhost:8000. A server with several ranks "
        "records them all. It must run with VLLM_SERVER_DEV_MODE=1."
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Steps that each rank records.")]
Out = Annotated[Path, typer.Option(help="The file to write, for Perfetto and for 'trace show'.")]
Timeout = Annotated[float, typer.Option(min=0, help="Seconds to wait for that many steps.")]
File = Annotated[Path, typer.Argument(help="A file that 'trace record' has written.")]
Page = Annotated[Path | None, typer.Option(help="Write a page with a timeline to this file.")]
Json = Annotated[bool, typer.Option("--json", help="Print the totals as JSON.")]


@app.command("record")
def record_steps(
    urls: Urls, steps: Steps = 8, out: Out = Path("trace.json"), timeout: Timeout = 60
) -> None:
    """Record some steps of all ranks of a running group; send requests meanwhile."""
    console = Console(stderr=True)
    servers = [TracedServer(url) for url in urls]
    with _one_sentence(), console.status("recording") as status:
        taken = record(
            servers,
            steps,
            timeout_s=timeout,
            report=lambda done: status.update(f"recorded {done} of {steps} steps"),
        )
        trace = Trace.of(taken)
        trace.write(out)
    _print(trace, console)
    console.print(f"wrote {out}; open it in ui.perfetto.dev, or with 'vllm-dwdp trace show'.")


@app.command("show")
def show(file: File, html: Page = None, as_json: Json = False) -> None:
    """Sum a trace up, and write a page that shows it in a browser without a network."""
    with _one_sentence():
        trace = read_trace(file)
        if html is not None:
            html.write_text(page_of(trace))
    if as_json:
        typer.echo(json.dumps(_totals(trace)))
    else:
        _print(trace, Console())


def _totals(trace: Trace) -> dict[str, object]:
    layers = [vars(layer) for layer in trace.layers]
    ranks = [rank.to_dict() for rank in trace.ranks]
    return {"ranks": ranks, "layers": layers, "notes": notes_on(trace)}


def _print(trace: Trace, console: Console) -> None:
    for table in tables_of(trace):
        console.print(_drawn(table))
    for note in notes_on(trace):
        console.print(note, markup=False, highlight=False)


def _drawn(table: Table) -> RichTable:
    drawn = RichTable(title=table.title, title_justify="left")
    for column in table.columns:
        drawn.add_column(column, justify="right")
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn errors that a user can cause into a CommandError."""
    try:
        yield
    except BadTrace as error:
        raise CommandError(str(error)) from error
    except NoRecording as error:
        raise CommandError(str(error), ExitCode.FAILED) from error
    except OSError as error:
        raise CommandError(f"can't write {error.filename}: {error.strerror}.") from error
