# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The figure of a comparison: tokens per second of each arm, with the spread over rounds."""

from pathlib import Path

from matplotlib.figure import Figure

from vllm_dwdp.bench.bench_serve import Result
from vllm_dwdp.bench.summary import summaries
from vllm_dwdp.cli.errors import CommandError

BAR = 0.38
"""The width of a bar; arms are 1 apart."""


def draw(result: Result, path: Path) -> None:
    """Raises CommandError if the file can't be written."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    names = list(result.measurements.of(result.variants[0]))
    for index, variant in enumerate(result.variants):
        found = [one.tokens_per_s for one in summaries(result.measurements, variant)]
        places = [place + index * BAR for place in range(len(found))]
        medians = [one.median for one in found]
        below = [one.median - one.low for one in found]
        above = [one.high - one.median for one in found]
        axes.bar(places, medians, BAR, yerr=[below, above], capsize=3, label=variant)
    axes.set_xticks([place + BAR * (len(result.variants) - 1) / 2 for place in range(len(names))])
    axes.set_xticklabels(names)
    axes.set_ylabel("tokens per second, median and range of rounds")
    axes.set_title(f"{result.request.model}, {len(result.request.parts)} ranks", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=len(result.variants))
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise CommandError(f"expected to write a figure to {path}: {error}.") from error
