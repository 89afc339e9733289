# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp simulate`: what many ranks would do, for a scenario in a file."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vllm_dwdp.cli.errors import CommandError, ExitCode


def simulate(
    scenario: Annotated[Path, typer.Argument(help="A scenario file; configs/scenarios has some.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every rank.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Take this seed instead of the file's.")
    ] = None,
) -> None:
    """Simulate ranks of DWDP and of expert parallelism, and compare them.

    Nothing is measured: the scenario says what a step costs. See docs/simulation.md.
    """
    try:
        from vllm_dwdp.simulation.comparison import compare
        from vllm_dwdp.simulation.errors import ScenarioError
        from vllm_dwdp.simulation.scenario_file import read_scenarios
    except ModuleNotFoundError as error:
        raise CommandError(
            f"simulate needs the package {error.name}: install vllm-dwdp[plan].", ExitCode.FAILED
        ) from error
    try:
        found = compare(read_scenarios(scenario, seed))
    except ScenarioError as error:
        raise CommandError(str(error)) from error
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
        return
    from vllm_dwdp.cli.simulate_tables import tables

    console = Console()
    for table in tables(found):
        console.print(table)
