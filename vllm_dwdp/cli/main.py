# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The entry point of `vllm-dwdp`."""

import sys

import typer
from rich.console import Console

from vllm_dwdp.cli import bench, trace
from vllm_dwdp.cli.doctor import doctor
from vllm_dwdp.cli.errors import CommandError
from vllm_dwdp.cli.plan import plan
from vllm_dwdp.cli.simulate import simulate

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Plan, check, measure and watch vLLM with Distributed Weight Data Parallelism.",
)
app.add_typer(bench.app, name="bench")
app.add_typer(trace.app, name="trace")


@app.callback()
def root() -> None:
    """Typer makes subcommands only of an app that has a callback or several commands."""


app.command()(plan)
app.command()(simulate)
app.command()(doctor)


def main() -> None:
    """Run the command line; a CommandError is one sentence and its exit code."""
    try:
        app()
    except CommandError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)
        sys.exit(error.code)
