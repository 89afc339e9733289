# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp bench serve`: DWDP beside other ways to use the same cores or GPUs."""

import contextlib
import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import typer

from vllm_dwdp.bench.arms import DWDP, arms_on
from vllm_dwdp.bench.bench_serve import Comparison, Result, bench_serve
from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.bench.load import Load
from vllm_dwdp.bench.parts import Parts, parts_of_this_machine
from vllm_dwdp.cli import bench_options as opt
from vllm_dwdp.cli.bench_tables import Progress, show_result
from vllm_dwdp.cli.errors import CommandError, ExitCode
from vllm_dwdp.cli.figures import check_figure


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
    nothing else run on the machine. Ctrl-C ends the rounds, and shows what was measured until then.
    See docs/bench.md.
    """
    _check_files(results, figure)
    with _log_folder(logs) as folder, _ended_like_by_ctrl_c():
        try:
            parts = parts_of_this_machine(dwdp_size)
        except BenchError as error:
            raise CommandError(str(error), ExitCode.FAILED) from error
        comparison = Comparison(
            model=model,
            parts=parts,
            arms=_known(arms, parts),
            load=Load(num_prompts, max_concurrency, input_len, range_ratio, output_len),
            num_rounds=rounds,
            seed=seed,
            options=tuple(options or ()),
            together=parts.holds_all_arms if together is None else together,
            disturber=parts.disturber() if disturb else None,
            logs=folder,
        )
        try:
            result = bench_serve(comparison, Progress())
        except BenchError as error:
            raise CommandError(str(error)) from error
    _show(result, as_json)
    _write(result, results, figure)
    _end(result)


def _check_files(results: Path | None, figure: Path | None) -> None:
    """Refuse files that can't be written, before anything is measured."""
    if figure is not None:
        check_figure(figure)
    for file in filter(None, (results, figure)):
        try:
            file.open("ab").close()
        except OSError as error:
            raise CommandError(f"expected a file that can be written: {error}.") from error


@contextlib.contextmanager
def _log_folder(logs: Path | None) -> Iterator[Path]:
    """The user's folder, or one that is deleted at the end."""
    if logs is None:
        with tempfile.TemporaryDirectory(prefix="dwdp-bench-") as folder:
            yield Path(folder)
        return
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"expected a folder for logs that can be written: {error}.") from error
    yield logs


@contextlib.contextmanager
def _ended_like_by_ctrl_c() -> Iterator[None]:
    """Within the block other signals that end a process end it like Ctrl-C, which stops servers."""
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _known(arms: list[str] | None, parts: Parts) -> list[str]:
    possible = arms_on(parts)
    if unknown := set(arms or ()) - set(possible):
        raise CommandError(
            f"expected arms out of {', '.join(possible)} on {parts.kind.upper()}s, got "
            f"{', '.join(sorted(unknown))}."
        )
    return list(dict.fromkeys(arms or possible))


def _show(result: Result, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2))
    else:
        show_result(result)


def _write(result: Result, results: Path | None, figure: Path | None) -> None:
    try:
        if results is not None:
            results.write_text(json.dumps(result.to_json(), indent=2) + "\n")
    except OSError as error:
        raise CommandError(f"expected to write results: {error}.", ExitCode.FAILED) from error
    if figure is not None:
        from vllm_dwdp.cli.bench_figure import draw

        draw(result, figure)


def _end(result: Result) -> None:
    """End with an error if DWDP failed, or if it wasn't asked for and all others failed."""
    arms = result.comparison.arms
    needed = [DWDP] if DWDP in arms else arms
    if all(arm in result.failures for arm in needed):
        why = result.failures[needed[0]]
        raise CommandError(f"the arm '{needed[0]}' failed: {why}", ExitCode.FAILED)
