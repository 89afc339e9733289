# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp bench serve`: DWDP beside other ways to use the same cores or GPUs."""

import json
import os
from pathlib import Path

import typer

from vllm_dwdp.bench.bench_serve import Request, Result, bench_serve
from vllm_dwdp.bench.disturbance.disturber import Disturber
from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.bench.load import Load
from vllm_dwdp.bench.recipe import DWDP, CoreParts, GpuParts, Parts, arms_on
from vllm_dwdp.cli import bench_options as opt
from vllm_dwdp.cli.bench_tables import Progress, show_result
from vllm_dwdp.cli.errors import CommandError, ExitCode


def serve(
    model: opt.Model,
    options: opt.ServeOptions = None,
    dwdp_size: opt.DwdpSize = 2,
    arms: opt.Arms = None,
    rounds: opt.Rounds = 5,
    num_prompts: opt.NumPrompts = 40,
    max_concurrency: opt.MaxConcurrency = 16,
    input_len: opt.InputLen = 512,
    range_ratio: opt.RangeRatio = 0.9,
    output_len: opt.OutputLen = 16,
    disturb: opt.Disturb = False,
    together: opt.Together = None,
    seed: opt.Seed = 0,
    results: opt.ResultsFile = None,
    figure: opt.FigureFile = None,
    logs: opt.LogFolder = None,
    as_json: opt.AsJson = False,
) -> None:
    """Measure DWDP beside other ways to use the same cores or GPUs, in interleaved rounds.

    It starts 'vllm serve' for each arm, and 'vllm bench serve' with a client for each rank. Let
    nothing else run on the machine. See docs/bench.md.
    """
    _check_before(results, figure)
    try:
        parts = _parts(dwdp_size)
        request = Request(
            model=model,
            parts=parts,
            arms=_known(arms, parts),
            load=Load(num_prompts, max_concurrency, input_len, range_ratio, output_len),
            num_rounds=rounds,
            seed=seed,
            options=tuple(options or ()),
            together=parts.kind == "cpu" if together is None else together,
            disturber=_disturber(parts) if disturb else None,
            logs=logs,
        )
        result = bench_serve(request, Progress())
    except BenchError as error:
        raise CommandError(str(error), ExitCode.FAILED) from error
    _tell(result, results, figure, as_json)


def _check_before(results: Path | None, figure: Path | None) -> None:
    """What would else be found missing after an hour of measuring."""
    for file in filter(None, (results, figure)):
        if not os.access(file.absolute().parent, os.W_OK):
            raise CommandError(f"expected a folder to write {file} to, but it can't be written.")
    if figure is not None:
        try:
            import vllm_dwdp.cli.bench_figure  # noqa: F401
        except ImportError as error:
            raise CommandError(
                f"--figure needs matplotlib, which isn't installed ({error}): pip install "
                "'vllm-dwdp[plan]'.",
                ExitCode.FAILED,
            ) from error


def _parts(dwdp_size: int) -> Parts:
    import torch

    if torch.cuda.is_available():
        return GpuParts(dwdp_size, torch.cuda.device_count())
    return CoreParts(dwdp_size)


def _known(arms: list[str] | None, parts: Parts) -> list[str]:
    possible = arms_on(parts)
    if unknown := set(arms or ()) - set(possible):
        raise CommandError(
            f"expected arms out of {', '.join(possible)} on {parts.kind.upper()}s, got "
            f"{', '.join(sorted(unknown))}."
        )
    return list(dict.fromkeys(arms or possible))


def _disturber(parts: Parts) -> Disturber:
    if parts.kind == "gpu":
        return Disturber.of_gpu("cuda:0")
    return Disturber.of_core(min(os.sched_getaffinity(0)))


def _tell(result: Result, results: Path | None, figure: Path | None, as_json: bool) -> None:
    if results is not None:
        results.write_text(json.dumps(result.to_json(), indent=2) + "\n")
    if figure is not None:
        from vllm_dwdp.cli.bench_figure import draw

        draw(result, figure)
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2))
    else:
        show_result(result)
    needed = [DWDP] if DWDP in result.commands else list(result.commands)
    if all(arm in result.absent for arm in needed):
        why = result.absent[needed[0]]
        raise CommandError(f"the arm '{needed[0]}' can't be measured: {why}", ExitCode.FAILED)
