# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Draws docs/owners.svg, who holds which experts, and docs/timeline.svg, copies beside compute.

    python docs/draw_concepts.py    # needs matplotlib; the same version writes the same bytes

Both have a white ground, so that they can be read on dark pages too.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from draw_dwdp import INK, LINE, PALE, note, pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

FOLDER = Path(__file__).parent

# Okabe and Ito's colours, and light tints of them: one for each rank, or for each slot.
STRONG = ("#0072B2", "#D55E00", "#009E73", "#AA4499")
TINTS = ("#CFE5F2", "#F9DDCB", "#CCEBE2", "#EEDAEB")

NUM_RANKS, NUM_EXPERTS = 4, 8
CELL, ROW = 10.0, 15.0
PER_RANK = NUM_EXPERTS // NUM_RANKS


def canvas(width: float, height: float) -> tuple[pyplot.Figure, Axes]:
    figure = pyplot.figure(figsize=(9.2, 9.2 * height / width), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, width)
    ax.set_ylim(0, height)
    ax.axis("off")
    return figure, ax


def save(figure: pyplot.Figure, name: str) -> None:
    figure.savefig(FOLDER / name, metadata={"Date": None, "Creator": "docs/draw_concepts.py"})
    pyplot.close(figure)


class Look(NamedTuple):
    """How a cell is drawn."""

    fill: str
    edge: str
    ink: str = INK
    is_dashed: bool = False
    hatch: str | None = None


def cell(
    ax: Axes, corner: tuple[float, float], size: tuple[float, float], text: str, look: Look
) -> None:
    """A box with a text in it; corner: its lower left one, size: width and height."""
    style = (0, (3, 2)) if look.is_dashed else "solid"
    ax.add_patch(
        Rectangle(
            corner,
            *size,
            facecolor=look.fill,
            edgecolor=look.edge,
            linewidth=1.2,
            linestyle=style,
            hatch=look.hatch,
        )
    )
    x, y = corner[0] + size[0] / 2, corner[1] + size[1] / 2
    ax.text(x, y, text, ha="center", va="center", color=look.ink, size=9)


def experts_row(ax: Axes, x: float, y: float, rank: int, *, holds_all: bool) -> None:
    """One rank's experts: those in its memory are solid, those that it reads elsewhere dashed."""
    ax.text(x, y + CELL / 2, f"rank {rank}", va="center", color=INK, size=9)
    for expert in range(NUM_EXPERTS):
        owner = rank if holds_all else expert // PER_RANK
        is_here = owner == rank
        look = Look(
            fill=STRONG[owner] if is_here else TINTS[owner],
            edge=STRONG[owner],
            ink="white" if is_here else INK,
            is_dashed=not is_here,
        )
        cell(ax, (x + 17 + expert * CELL, y), (CELL, CELL), str(expert), look)


def draw_owners() -> None:
    figure, ax = canvas(228, 95)
    titles = ("Replicas: every rank holds all experts", "DWDP: every rank owns a quarter")
    ends = ("32 experts in memory for 8", "8 experts in memory for 8")
    for column, (title, end) in enumerate(zip(titles, ends, strict=True)):
        x = 8 + column * 115
        ax.text(x, 89, title, weight="bold", color=INK, va="center")
        for rank in range(NUM_RANKS):
            experts_row(ax, x, 70 - rank * ROW, rank, holds_all=column == 0)
        note(ax, x + 17 + 4 * CELL, 19, end)
    key = Look(fill=LINE, edge=INK)
    cell(ax, (8, 4), (7, 7), "", key)
    ax.text(18, 7.5, "in this rank's own memory", va="center", size=9, color=INK)
    cell(ax, (90, 4), (7, 7), "", Look(fill=PALE, edge=INK, is_dashed=True))
    text = "in the owner's memory (its colour), which this rank has mapped"
    ax.text(100, 7.5, text, va="center", size=9, color=INK)
    save(figure, "owners.svg")


WAITING = Look("white", LINE, hatch="////")


class Span(NamedTuple):
    """From when to when something runs, for which layer."""

    start: float
    end: float
    layer: int


class Run(NamedTuple):
    """A step with two slots: what computes, waits and is copied."""

    other: list[Span]
    kernels: list[Span]
    waits: list[Span]
    copies: list[Span]


def run_step(num_layers: int, compute: float, copy: float) -> Run:
    """A step in mode `prefetch`; half of `compute` is attention, the rest the experts' kernel."""
    run = Run([], [], [], [])
    filled = {0: 0.0, 1: 0.0}  # the last step has filled both slots
    now = link_free = 0.0
    for layer in range(num_layers):
        run.other.append(Span(now, now + compute / 2, layer))
        ready = now + compute / 2
        begin = max(ready, filled[layer])
        if begin > ready:
            run.waits.append(Span(ready, begin, layer))
        now = begin + compute / 2
        run.kernels.append(Span(begin, now, layer))
        start = max(now, link_free)
        link_free = filled[layer + 2] = start + copy
        run.copies.append(Span(start, link_free, (layer + 2) % num_layers))
    return run


def draw_run(ax: Axes, run: Run, y: float, title: str) -> None:
    left, scale, height = 30.0, 3.05, 9.0
    ax.text(4, y + 30, title, weight="bold", color=INK, va="center")
    for row, name in enumerate(("compute", "copies")):
        ax.text(4, y + 19 - row * 12, name, va="center", size=9, color=INK)

    def lane(spans: list[Span], row: int, name: str, look_of: Callable[[Span], Look]) -> None:
        for span in spans:
            corner = (left + span.start * scale, y + 14.5 - row * 12)
            width = (span.end - span.start) * scale
            cell(ax, corner, (width, height), name.format(span.layer), look_of(span))

    lane(run.other, 0, "", lambda _: Look(PALE, LINE))
    lane(run.waits, 0, "", lambda _: WAITING)
    lane(run.kernels, 0, "{}", lambda span: Look(STRONG[span.layer % 2], INK, ink="white"))
    lane(run.copies, 1, "for {}", lambda span: Look(TINTS[span.layer % 2], STRONG[span.layer % 2]))
    end = left + run.kernels[-1].end * scale
    ax.plot([end, end], [y + 1, y + 26], color=INK, linewidth=1.6)
    ax.text(end + 1.5, y + 26, "end of the step", size=8, color=INK, va="center")


def draw_timeline() -> None:
    figure, ax = canvas(228, 93)
    num_layers, copy = 6, 5.5
    enough = "Enough tokens: a layer computes longer than its copy takes, so nothing waits"
    draw_run(ax, run_step(num_layers, 8.4, copy), 57, enough)
    few = "Too few tokens: layers wait for their copies"
    draw_run(ax, run_step(num_layers, 3.4, copy), 18, few)
    key = (
        (4, Look(PALE, LINE), "attention and the rest"),
        (60, Look(STRONG[0], INK), "experts of a layer, out of slot 0"),
        (137, Look(STRONG[1], INK), "out of slot 1"),
        (178, WAITING, "waiting for a copy"),
    )
    for x, look, text in key:
        cell(ax, (x, 3), (7, 7), "", look)
        ax.text(x + 9, 6.5, text, va="center", size=9, color=INK)
    save(figure, "timeline.svg")


if __name__ == "__main__":
    draw_owners()
    draw_timeline()
