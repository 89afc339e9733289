# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The options of `vllm-dwdp plan`, with what its help says of them."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="A folder with config.json, such a file, or a name out of configs/models. The word "
        "'contention' asks how many ranks read one source at a time; a folder of that name is "
        "./contention."
    ),
]
HardwareName = Annotated[
    str | None,
    typer.Option(help="A name in configs/hardware, such as gb200 or h200, or a profile's file."),
]
DwdpSize = Annotated[int, typer.Option(help="Ranks that share the experts.")]
Isl = Annotated[int, typer.Option(help="Tokens of the longest prompt.")]
LengthRatio = Annotated[
    float, typer.Option(help="The shortest prompt's length over the longest's.")
]
BatchSize = Annotated[
    int | None, typer.Option(help="Prompts in a step of a rank. Default: as many as fit.")
]
MaxTokens = Annotated[
    int | None, typer.Option(help="Tokens of a step at most. Default: the batch's, or 32768.")
]
ExpertsPerWorker = Annotated[
    int | None, typer.Option(help="Experts that a rank owns. Default: evenly.")
]
TokensInFlight = Annotated[
    int | None, typer.Option(help="Prompt tokens that really wait on a rank, if steps aren't full.")
]
ExpertFormat = Annotated[
    str | None, typer.Option(help="Format of the experts, if not the checkpoint's.")
]
Slowest = Annotated[
    float, typer.Option(help="Speed of the slowest rank; 0.5: half of the others'.")
]
JobPrompts = Annotated[
    int | None,
    typer.Option(help="With --slowest: prompts after which the job ends. Default: it goes on."),
]
MaxInFlight = Annotated[
    int, typer.Option(help="With --job-prompts: prompts that a rank holds at a time.")
]
Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="Measure this machine, and plan for it.")
]
ProfileFile = Annotated[
    Path | None, typer.Option(help="With --calibrate: write the profile to this file.")
]
FigureFile = Annotated[
    Path | None, typer.Option(help="Draw window over fetch by tokens per step to this file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Simulate = Annotated[
    bool,
    typer.Option(
        "--simulate", help="Also simulate DWDP and expert parallelism on prompts of these lengths."
    ),
]
Seed = Annotated[int | None, typer.Option(help="With --simulate: the seed. Default: 0.")]
NumPrompts = Annotated[
    int | None,
    typer.Option(help="With --simulate: prompts. Default: enough for a few steps of each rank."),
]
ArrivalsPerS = Annotated[
    float | None,
    typer.Option(
        help="With --simulate: prompts that arrive in a second, at random. Default: all are there "
        "at the start."
    ),
]
