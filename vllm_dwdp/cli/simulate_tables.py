# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The tables of `vllm-dwdp simulate`."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from vllm_dwdp.simulation.comparison import Comparison
from vllm_dwdp.simulation.outcome import Percentiles, RankOutcome

MOST_RANKS = 4
"""Of more ranks only the slowest, the median and the fastest one are shown."""


def tables(found: Sequence[Comparison]) -> Iterator[Table]:
    """A table of all variants, one of their ranks, and one of rivals if any variant has pulls."""
    yield _summary(found)
    yield _of_ranks(found)
    if any(one.outcome.rivals for one in found):
        yield _rivals(found)


def _summary(found: Sequence[Comparison]) -> Table:
    first = found[0].outcome
    title = f"{len(first.ranks)} ranks, {first.num_requests} prompts, seed {found[0].seed}"
    table = _table(title, "variant", "tokens/s", "over\nDEP", "makespan\ns", "waiting\n%", *TTFT)
    for one in found:
        outcome = one.outcome
        table.add_row(
            one.name,
            f"{outcome.tokens_per_s:,.0f}",
            "" if one.over_dep is None else f"{one.over_dep:.3f}",
            f"{outcome.makespan_s:.2f}",
            f"{100 * outcome.exposed_share:.1f}",
            *_ttft(outcome.ttft_s),
        )
    return table


def _of_ranks(found: Sequence[Comparison]) -> Table:
    columns = ("variant", "rank", "steps", "tokens/s", "waiting\ns", "copies\nGB/s", *TTFT)
    table = _table("Ranks", *columns)
    for one in found:
        for rank in _shown(one.outcome.ranks):
            table.add_row(
                one.name,
                str(rank.rank),
                str(rank.steps),
                f"{rank.tokens_per_s:,.0f}",
                f"{rank.exposed_s:.3f}",
                f"{rank.copy_bytes_per_s / 1e9:.1f}" if rank.bytes_fetched else "",
                *_ttft(rank.ttft_s),
            )
    return table


def _rivals(found: Sequence[Comparison]) -> Table:
    most = max(len(one.outcome.rivals) for one in found)
    title = "Share of a pull's time (%), by number of rivals at its source"
    table = _table(title, "variant", *map(str, range(most)))
    for one in found:
        if one.outcome.rivals:
            table.add_row(one.name, *(f"{100 * share:.2f}" for share in one.outcome.rivals))
    return table


def _shown(ranks: Sequence[RankOutcome]) -> Sequence[RankOutcome]:
    if len(ranks) <= MOST_RANKS:
        return ranks
    ordered = sorted(ranks, key=lambda rank: rank.tokens_per_s)
    return (ordered[0], ordered[len(ordered) // 2], ordered[-1])


TTFT = ("TTFT\np50 s", "\np90 s", "\np99 s")


def _ttft(seconds: Percentiles | None) -> tuple[str, ...]:
    return tuple(f"{value:.3f}" for value in seconds) if seconds else ("", "", "")


def _table(title: str, *columns: str) -> Table:
    """An empty table whose first column is text that may wrap, and whose others are numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    first, *others = columns
    table.add_column(first)
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table
