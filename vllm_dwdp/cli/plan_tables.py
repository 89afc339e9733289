# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A plan as tables for the terminal."""

import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from vllm_dwdp.planning.contention import Contention
from vllm_dwdp.planning.plan import Plan
from vllm_dwdp.planning.sweep import SweepRow

Row = tuple[str, ...]
SHOWN_PERCENT = 0.005
"""Less is 0.00 in the table."""

_SPEED_HEADS = ("prompt", "ranks", "DWDP", "over EP", "over TP", "over replicas")
_DECODE_HEADS = ("sequences on a rank", "DWDP", "expert parallelism")


def show_plan(plan: Plan, *others: Table) -> None:
    """Print the plan to standard output; the command to paste stands last, on a line of its own.

    others: tables to print behind those of the plan.
    """
    console = Console(highlight=False)
    console.print(_title(plan), markup=False, soft_wrap=True)
    for name, heads, rows in _tables(plan):
        console.print(table(name, heads, rows))
    for other in others:
        console.print(other)
    console.print(f"Verdict: {plan.verdict.answer}.", style="bold", markup=False)
    for reason in plan.verdict.reasons:
        console.print(reason, markup=False, soft_wrap=True)
    if plan.flags:
        console.print(plan.flags, markup=False, soft_wrap=True)


def show_contention(found: Contention) -> None:
    rows: list[Row] = [
        (str(k), str(k + 1), f"{percent:.2f} %")
        for k, percent in enumerate(found.percentages)
        if percent >= SHOWN_PERCENT
    ]
    heads = ("rivals", "ranks that read one source", "probability")
    name = f"Contention among {found.dwdp_size} ranks that copy from random peers"
    Console(highlight=False).print(table(name, heads, rows))


def _title(plan: Plan) -> str:
    request = plan.request
    return (
        f"{request.model.name} on {request.hardware.name}, {request.dwdp_size} ranks, prompts of "
        f"{request.isl} tokens at most, {request.work().tokens:.0f} tokens in a step of a rank"
    )


def _tables(plan: Plan) -> Iterable[tuple[str, Row, list[Row]]]:
    yield "Memory of a rank", ("what", "GB"), _memory_rows(plan)
    yield "One layer", ("what", "expected", "at peak rates"), _layer_rows(plan)
    yield "Tokens of a rank's step", ("what", "tokens"), _token_rows(plan)
    name = "Prompt tokens per second and rank"
    yield name, _SPEED_HEADS, [_speed_row(plan, row) for row in (*plan.by_length, *plan.by_size)]
    yield "Milliseconds of a decode step", _DECODE_HEADS, _decode_rows(plan)


def _memory_rows(plan: Plan) -> list[Row]:
    memory = plan.memory
    room = f"{memory.kv_tokens:,} tokens"
    return [
        ("own experts", _gb(memory.resident_experts)),
        ("slots", _gb(memory.slots)),
        ("other weights", _gb(memory.rest)),
        ("activations", _gb(memory.activations)),
        ("vLLM may use", _gb(memory.budget)),
        ("left for the KV cache", room),
        ("the same, if a rank had all experts", f"{plan.replica_memory.kv_tokens:,} tokens"),
    ]


def _layer_rows(plan: Plan) -> list[Row]:
    expected, peak = plan.expected, plan.peak
    return [
        ("experts to fetch", f"{_gb(plan.spread.fetch_bytes)} GB", ""),
        ("fetch", f"{1e3 * expected.fetch:.3f} ms", f"{1e3 * peak.fetch_s:.3f} ms"),
        ("computation", f"{1e3 * expected.compute:.3f} ms", f"{1e3 * peak.window_s:.3f} ms"),
        (
            "computation over fetch",
            _ratio(expected.over_fetch),
            _ratio(peak.window_over_fetch),
        ),
        (
            "expert parallelism over DWDP",
            _ratio(plan.speed.dep_over_dwdp),
            _ratio(peak.dep_over_dwdp),
        ),
    ]


def _token_rows(plan: Plan) -> list[Row]:
    return [
        ("break-even: copies without rivals just hidden", _tokens(plan.break_even)),
        ("recommended", _tokens(plan.recommended)),
        ("planned", f"{plan.request.work().tokens:,.0f}"),
    ]


def _speed_row(plan: Plan, row: SweepRow) -> Row:
    speed = row.speed
    others = [speed.expert_parallel, speed.tensor_parallel]
    ratios = [_ratio(speed.dwdp / other) for other in others]
    ratios += [_ratio(speed.dwdp / speed.replicas) if plan.replicas_fit else "don't fit"]
    return (str(row.isl), str(row.dwdp_size), f"{speed.dwdp:,.0f}", *ratios)


def _decode_rows(plan: Plan) -> list[Row]:
    other = plan.expert_parallel_decode
    return [(str(n), f"{ms:.1f}", f"{other[n]:.1f}") for n, ms in plan.decode.items()]


def table(name: str, heads: Row, rows: list[Row]) -> Table:
    """A table whose first column is text, and whose others are figures."""
    made = Table(title=name, title_justify="left")
    for index, head in enumerate(heads):
        made.add_column(head, justify="right" if index else "left")
    for row in rows:
        made.add_row(*row)
    return made


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}x" if math.isfinite(value) else "nothing to fetch"


def _tokens(count: int | None) -> str:
    if count is None:
        return "none is enough"
    return f"{count:,}" if count else "any: nothing is copied"
