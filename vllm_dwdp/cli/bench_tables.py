# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A comparison of deployments as tables for the terminal, and lines about its progress."""

from rich.console import Console
from rich.table import Table

from vllm_dwdp.bench.arms import DWDP, WHAT_ARMS_ARE
from vllm_dwdp.bench.bench_serve import Result
from vllm_dwdp.bench.rounds import Measurement
from vllm_dwdp.bench.summary import ArmSummary, Spread, summaries

HEADS = ("arm", "tokens/s", "rounds", "DWDP over it", "first, ms", "GiB")


class Progress:
    """Prints the commands, and a line for each measurement, to standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)

    def begin(self, commands: dict[str, list[str]], client_command: str) -> None:
        for name, lines in commands.items():
            self._print(f"{name}, {WHAT_ARMS_ARE[name]}:", *(f"  {line}" for line in lines))
        self._print(
            "the first client of the first round; others have other seeds, or another server:",
            f"  {client_command}",
        )

    def ready(self, arm: str) -> None:
        self._print(f"{arm} has started")

    def measured(self, one: Measurement) -> None:
        share = f", {one.core_share:.0%} of a core taken" if one.core_share is not None else ""
        rate = f"{one.served.tokens_per_s:10.1f} tokens/s"
        self._print(f"round {one.round + 1}: {one.arm:9}{rate} {one.variant}{share}")

    def _print(self, *lines: str) -> None:
        for line in lines:
            self._console.print(line, markup=False)


def show_result(result: Result) -> None:
    """Print a table for each variant, and the arms that failed."""
    console = Console(highlight=False)
    for variant in result.variants:
        console.print(_table(result, variant))
    for name, why in result.failures.items():
        console.print(f"{name} failed: {why}", markup=False, soft_wrap=True)


def _table(result: Result, variant: str) -> Table:
    comparison = result.comparison
    table = Table(title=f"{comparison.model}, {len(comparison.parts)} ranks, {variant}")
    for head in HEADS:
        table.add_column(head, justify="left" if head == HEADS[0] else "right")
    for one in summaries(result.measurements, variant):
        table.add_row(*_row(one, _gib(result, one.arm)))
    return table


def _row(one: ArmSummary, gib: str) -> tuple[str, ...]:
    rate = one.tokens_per_s
    return (
        one.arm,
        f"{rate.median:,.0f}",
        f"{rate.low:,.0f}-{rate.high:,.0f}",
        _ratio(one.dwdp_over) if one.arm != DWDP else "",
        f"{one.ttft_s.median * 1e3:,.0f}",
        gib,
    )


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def _gib(result: Result, arm: str) -> str:
    """Memory of GPUs; of the host where there are none."""
    use = result.measurements.memory[arm]
    if result.comparison.parts.kind == "cpu":
        return f"{use.host / 2**30:.2f}"
    return "" if use.gpus is None else f"{use.gpus / 2**30:.2f}"
