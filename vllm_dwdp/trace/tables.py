# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The tables that sum a trace up, for the terminal and for the page."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from vllm_dwdp.trace.totals import LayerTotals, RankTotals
from vllm_dwdp.trace.trace_file import Trace

NUM_WORST = 10


class Table(NamedTuple):
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def tables_of(trace: Trace) -> list[Table]:
    """Totals by rank, bytes by rank and source, and the layers that waited longest."""
    ranks = trace.ranks
    worst = [layer for layer in trace.layers if layer.wait_s > 0][:NUM_WORST]
    return [_totals(ranks), _bytes(ranks), _layers(worst)]


def notes_on(trace: Trace) -> list[str]:
    """Sentences about what is missing from a trace, or what doesn't add up."""
    found = []
    for about in trace.about_ranks:
        name = f"Rank {about['rank']}"
        if about["num_steps"] < about["wanted_steps"]:
            found.append(f"{name} ran {about['num_steps']} of {about['wanted_steps']} steps.")
        if about["cancelled"]:
            found.append(f"{name} cut {about['cancelled']} copies short; they count in full.")
        if about["dropped_bytes"]:
            found.append(f"{name} had no room for copies of {_mib(about['dropped_bytes'])}.")
        if about["gathered_bytes"]:
            gathered = _mib(about["gathered_bytes"])
            found.append(f"{name} gathered {gathered} by a kernel, while layers waited.")
    return [*found, *(note for rank in trace.ranks for note in _differences(rank))]


def _differences(rank: RankTotals) -> list[str]:
    what = {"bytes copied": rank.bytes, "seconds waited": rank.waits}
    return [
        f"Rank {rank.rank}: {name} are {check.traced:.6g} in the trace, {check.counted:.6g} by the "
        "counters."
        for name, check in what.items()
        if not check.agrees
    ]


def _totals(ranks: Sequence[RankTotals]) -> Table:
    """A row for each figure and a column for each rank."""
    figures: dict[str, Callable[[RankTotals], str]] = {
        "steps": lambda rank: str(rank.num_steps),
        "tokens": lambda rank: str(rank.tokens),
        "modes": lambda rank: ", ".join(f"{n} {mode}" for mode, n in rank.modes.items()) or "-",
        "steps, ms": lambda rank: _ms(rank.step_s),
        "experts, ms": lambda rank: _ms(rank.kernel_s),
        "between layers, ms": lambda rank: _ms(rank.between_s),
        "exposed wait, ms": lambda rank: _ms(rank.wait_s),
        "calls of the scheduler, ms": lambda rank: _ms(rank.calls_s),
        "exposed wait, % of steps": lambda rank: _percent(
            rank.wait_s / rank.step_s if rank.step_s else None
        ),
        "copies, ms": lambda rank: _ms(rank.copy_s),
        "copies hidden, %": lambda rank: _percent(rank.hidden_share),
    }
    columns = ("", *(f"rank {rank.rank}" for rank in ranks))
    rows = [(name, *map(figure, ranks)) for name, figure in figures.items()]
    return Table("Totals", columns, rows)


def _bytes(ranks: Sequence[RankTotals]) -> Table:
    rows = [
        (str(rank.rank), place, f"{num_bytes / 2**20:.1f}")
        for rank in ranks
        for place, num_bytes in sorted(rank.copied_bytes.items())
    ]
    return Table("Copied bytes", ("rank", "from", "MiB"), rows)


def _layers(layers: Sequence[LayerTotals]) -> Table:
    columns = (
        *("rank", "layer", "wait, ms", "worst step, ms", "experts, ms", "copied, MiB"),
        "late prefetches",
    )
    rows = [
        (
            str(layer.rank),
            str(layer.layer),
            _ms(layer.wait_s),
            _ms(layer.worst_wait_s),
            _ms(layer.kernel_s),
            f"{layer.copied_bytes / 2**20:.1f}",
            str(layer.num_late),
        )
        for layer in layers
    ]
    return Table("Layers that waited longest", columns, rows)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.1f}"
