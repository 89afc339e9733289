# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A comparison of deployments as tables for the terminal, and lines about its progress."""

from rich.console import Console
from rich.table import Table

from vllm_dwdp.bench.bench_serve import Result
from vllm_dwdp.bench.recipe import DWDP, WHAT_ARMS_ARE
from vllm_dwdp.bench.rounds import Measurement
from vllm_dwdp.bench.summary import ArmSummary, Spread, summaries

HEADS = ("arm", "tokens/s", "rounds", "DWDP over it", "first, ms", "GiB")


class Progress:
    """Prints the commands, and a line for each measurement, to standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)

    def begin(self, commands: dict[str, list[str]], client_command: str) -> None:
        for name, lines in commands.items():
            self._say(f"{name}, {WHAT_ARMS_ARE[name]}:", *(f"  {line}" for line in lines))
        self._say("a client, each with a seed of its own:", f"  {client_command}")

    def measured(self, one: Measurement) -> None:
        share = f", {one.taken:.0%} of a core taken" if one.taken else ""
        rate = f"{one.served.tokens_per_s:10.1f} tokens/s"
        self._say(f"round {one.round + 1}: {one.arm:9}{rate} {one.variant}{share}")

    def _say(self, *lines: str) -> None:
        for line in lines:
            self._console.print(line, markup=False)


def show_result(result: Result) -> None:
    """Print a table for each variant, and the arms that can't be measured."""
    console = Console(highlight=False)
    for variant in result.variants:
        console.print(_table(result, variant))
    for name, why in result.absent.items():
        console.print(f"{name} can't be measured: {why}", markup=False, soft_wrap=True)


def _table(result: Result, variant: str) -> Table:
    table = Table(title=f"{result.request.model}, {len(result.request.parts)} ranks, {variant}")
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
    """Host memory; on GPUs, theirs."""
    use = result.measurements.memory[arm]
    is_gpu = result.request.parts.kind == "gpu"
    num_bytes = use.gpus if is_gpu and use.gpus is not None else use.host
    return f"{num_bytes / 2**30:.2f}"
