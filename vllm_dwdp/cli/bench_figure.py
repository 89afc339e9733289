# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The figure of a comparison: tokens per second of each arm, with the spread over rounds."""

from pathlib import Path

from matplotlib.figure import Figure

from vllm_dwdp.bench.bench_serve import Result
from vllm_dwdp.bench.summary import summaries
from vllm_dwdp.cli.figures import save

BAR = 0.38
"""The width of a bar; arms are 1 apart."""


def draw(result: Result, path: Path) -> None:
    """Raises CommandError if the file can't be written."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    names = list(result.measurements.memory)
    for index, variant in enumerate(result.variants):
        found = summaries(result.measurements, variant)
        places = [names.index(one.arm) + index * BAR for one in found]
        rates = [one.tokens_per_s for one in found]
        below = [rate.median - rate.low for rate in rates]
        above = [rate.high - rate.median for rate in rates]
        medians = [rate.median for rate in rates]
        axes.bar(places, medians, BAR, yerr=[below, above], capsize=3, label=variant)
    axes.set_xticks([place + BAR * (len(result.variants) - 1) / 2 for place in range(len(names))])
    axes.set_xticklabels(names)
    axes.set_ylabel("tokens per second, median and range of rounds")
    comparison = result.comparison
    axes.set_title(f"{comparison.model}, {len(comparison.parts)} ranks", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=len(result.variants))
    save(figure, path)
