# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The options of `vllm-dwdp bench serve`, with what its help says of them."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="A model: a local path, or a name that vLLM knows.")]
ServeOptions = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- OPTIONS]", help="Options for every 'vllm serve'."),
]
DwdpSize = Annotated[
    int, typer.Option(min=2, help="Ranks; each has a GPU, or an equal part of the cores.")
]
Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--arm",
        help="What to measure: dwdp, tp, replicas, ep or, on CPUs, one. Give it several times.",
        show_default="all",
    ),
]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds; each of them measures every arm.")]
NumPrompts = Annotated[int, typer.Option(min=1, help="Prompts of a client in a round.")]
MaxConcurrency = Annotated[
    int, typer.Option(min=1, help="Requests of a client that are under way at a time.")
]
InputLen = Annotated[int, typer.Option(min=1, help="Tokens of a prompt, on average.")]
RangeRatio = Annotated[
    float, typer.Option(min=0, max=0.99, help="By which share the lengths of prompts vary.")
]
OutputLen = Annotated[int, typer.Option(min=1, help="Tokens of an answer.")]
Disturb = Annotated[
    bool,
    typer.Option(
        "--disturb",
        help="Measure each arm also while another process takes half of one core, or of one GPU.",
    ),
]
Together = Annotated[
    bool | None,
    typer.Option(
        "--together/--in-turns",
        help="Keep all arms in memory, or start an arm whenever it is its turn.",
        show_default="--together on CPUs",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Decides on the prompts.")]
ResultsFile = Annotated[Path | None, typer.Option(help="Write the results to this JSON file.")]
FigureFile = Annotated[Path | None, typer.Option(help="Draw the results to this file.")]
LogFolder = Annotated[Path | None, typer.Option(help="Keep the servers' logs in this folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
