# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp plan`: does DWDP pay for this model, on this hardware, under this load?"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import typer

from vllm_dwdp.cli import plan_options as opt
from vllm_dwdp.cli.errors import CommandError
from vllm_dwdp.cli.figures import check_figure
from vllm_dwdp.cli.plan_simulation import read_prompts, run, simulated_json, simulated_table
from vllm_dwdp.cli.plan_tables import show_contention, show_plan
from vllm_dwdp.planning import profiles
from vllm_dwdp.planning.contention import contention
from vllm_dwdp.planning.errors import PlanError
from vllm_dwdp.planning.hardware import Hardware, read_hardware
from vllm_dwdp.planning.job import ENDLESS, Job
from vllm_dwdp.planning.model_config import read_model
from vllm_dwdp.planning.plan import make_plan
from vllm_dwdp.planning.plan_json import contention_json, plan_json
from vllm_dwdp.planning.prompts import Prompts
from vllm_dwdp.planning.request import Request

CONTENTION = "contention"
"""As MODEL this word asks for the contention of copies; a folder of that name is `./contention`."""


def plan(
    model: opt.Model,
    hardware: opt.HardwareName = None,
    dwdp_size: opt.DwdpSize = 4,
    isl: opt.Isl = 8192,
    length_ratio: opt.LengthRatio = 0.8,
    batch_size: opt.BatchSize = None,
    max_num_batched_tokens: opt.MaxTokens = None,
    num_experts_per_worker: opt.ExpertsPerWorker = None,
    tokens_in_flight: opt.TokensInFlight = None,
    expert_format: opt.ExpertFormat = None,
    slowest: opt.Slowest = 1.0,
    job_prompts: opt.JobPrompts = None,
    max_in_flight: opt.MaxInFlight = ENDLESS.max_in_flight,
    calibrate: opt.Calibrate = False,
    profile: opt.ProfileFile = None,
    figure: opt.FigureFile = None,
    as_json: opt.AsJson = False,
    simulate: opt.Simulate = False,
    seed: opt.Seed = None,
    num_prompts: opt.NumPrompts = None,
    arrivals_per_s: opt.ArrivalsPerS = None,
) -> None:
    """Say beforehand whether DWDP pays: memory, copies, break-even, throughput, a verdict."""
    with _sentences():
        prompts = read_prompts(simulate, seed, num_prompts, arrivals_per_s)
        if model == CONTENTION:
            return _contention(dwdp_size, as_json, prompts)
        request = Request(
            model=read_model(model, expert_format=expert_format),
            hardware=_hardware(hardware, calibrate, profile, dwdp_size),
            dwdp_size=dwdp_size,
            isl=isl,
            length_ratio=length_ratio,
            batch_size=batch_size,
            max_num_batched_tokens=max_num_batched_tokens,
            tokens_in_flight=tokens_in_flight,
            num_experts_per_worker=num_experts_per_worker,
            job=Job(slowest, job_prompts, max_in_flight),
        )
        _plan(request, model, figure, as_json, prompts)


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Bad input ends the command with its sentence."""
    try:
        yield
    except PlanError as error:
        raise CommandError(str(error)) from error


def _contention(dwdp_size: int, as_json: bool, prompts: Prompts | None) -> None:
    if prompts is not None:
        raise PlanError("expected a model for --simulate, got the mode 'contention'.")
    found = contention(dwdp_size)
    if as_json:
        typer.echo(json.dumps(contention_json(found), indent=2))
    else:
        show_contention(found)


def _plan(
    request: Request, place: str, figure: Path | None, as_json: bool, prompts: Prompts | None
) -> None:
    made = make_plan(request, place)
    found = run(request, prompts) if prompts is not None else None
    if as_json:
        simulated = {"simulated": simulated_json(made, found)} if found else {}
        typer.echo(json.dumps({**plan_json(made), **simulated}, indent=2))
    else:
        show_plan(made, *([simulated_table(made, found)] if found else []))
    if figure is not None:
        _draw(request, figure)


def _draw(request: Request, figure: Path) -> None:
    check_figure(figure)
    from vllm_dwdp.cli.plan_figure import draw

    draw(request, figure)


def _hardware(
    name: str | None, is_calibrating: bool, profile: Path | None, dwdp_size: int
) -> Hardware:
    """The hardware that was named or measured."""
    if is_calibrating == (name is not None):
        known = ", ".join(profiles.names(profiles.HARDWARE))
        raise PlanError(
            f"expected either --hardware (one of {known}, or a file) or --calibrate, got "
            f"{'both' if is_calibrating else 'neither'}."
        )
    if profile is not None and not is_calibrating:
        raise PlanError("expected --calibrate with --profile, got --profile alone.")
    return read_hardware(name) if name is not None else _measured(profile, dwdp_size)


def _measured(profile: Path | None, dwdp_size: int) -> Hardware:
    # It imports PyTorch, which takes a second that other plans needn't wait.
    from vllm_dwdp.planning import calibrate

    if dwdp_size < 1:
        raise PlanError(f"expected --dwdp-size of at least 1, got {dwdp_size}.")
    measured = calibrate.calibrate(dwdp_size)
    if profile is not None:
        calibrate.write_profile(measured, profile)
    return measured.hardware()
