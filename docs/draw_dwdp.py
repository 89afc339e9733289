# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Draws docs/dwdp.svg: two ranks, their memory, and the views that stitch it together.

    python docs/draw_dwdp.py        # needs matplotlib; the same version writes the same bytes

Rank 1 is rank 0 turned by 180 degrees, so that no arrow crosses another.
"""

from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams.update(
    {"svg.hashsalt": "vllm-dwdp", "font.family": "DejaVu Sans", "font.size": 10}
)

from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle  # noqa: E402

OUT = Path(__file__).with_name("dwdp.svg")
WIDTH, HEIGHT = 228.0, 131.0

# Okabe and Ito's colours, and light tints of them.
INK, LINE, PALE = "#222222", "#8A8A8A", "#F4F4F4"
OWNERS = ("#0072B2", "#D55E00")
TINTS = ("#CFE5F2", "#F9DDCB")

PANEL_WIDTH, PANEL_BOTTOM, PANEL_TOP = 104.0, 23.0, 130.0
PANELS = (1.0, 123.0)
HIGH_ROW, LOW_ROW = 74.0, 37.0
ROW_HEIGHT, FRINGE_HEIGHT = 17.0, 6.5


class Strip(NamedTuple):
    """Where a view's parts lie, from the panel's left edge: (x, width)."""

    left: tuple[float, float] = (6.0, 37.0)
    boundary: tuple[float, float] = (43.0, 18.0)
    right: tuple[float, float] = (61.0, 37.0)


STRIP = Strip()


def box(
    ax: Axes, x: float, y: float, width: float, height: float, text: str, *, edge: str, fill: str
) -> None:
    ax.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor=edge, linewidth=1.4))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=INK, size=9)


def note(ax: Axes, x: float, y: float, text: str, *, align: str = "center") -> None:
    ax.text(x, y, text, ha=align, va="center", color=INK, size=9, style="italic")


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], owner: int) -> None:
    """A mapping: the view shows this memory."""
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=15,
            linewidth=2.2,
            color=OWNERS[owner],
            shrinkA=0,
            shrinkB=1,
        )
    )


def copy(ax: Axes, points: list[tuple[float, float]], owner: int) -> None:
    """Bytes copied once: along the points, a head at the last."""
    style = {"color": OWNERS[owner], "linewidth": 1.3, "linestyle": (0, (3, 2))}
    ax.plot(*zip(*points[:-1], strict=True), **style)
    ax.add_patch(
        FancyArrowPatch(
            points[-2],
            points[-1],
            arrowstyle="-|>",
            mutation_scale=9,
            shrinkA=0,
            shrinkB=1,
            **style,
        )
    )


def panel(ax: Axes, rank: int) -> None:
    x = PANELS[rank]
    ax.add_patch(
        FancyBboxPatch(
            (x, PANEL_BOTTOM),
            PANEL_WIDTH,
            PANEL_TOP - PANEL_BOTTOM,
            boxstyle="round,pad=0,rounding_size=3",
            facecolor="white",
            edgecolor=OWNERS[rank],
            linewidth=1.6,
        )
    )
    title = f"Rank {rank}: an engine with its own requests"
    ax.text(x + PANEL_WIDTH / 2, 124.5, title, ha="center", va="center", weight="bold", color=INK)
    private = "Attention, norms, router, KV cache: all of it, private"
    box(ax, x + 6, 107, 92, 11, private, edge=LINE, fill=PALE)


def view(ax: Axes, rank: int, y: float) -> None:
    x = PANELS[rank]
    parts = (
        (STRIP.left, "experts 0-7", OWNERS[0], TINTS[0]),
        (STRIP.right, "experts 8-15", OWNERS[1], TINTS[1]),
        (STRIP.boundary, "boundary\npage", LINE, PALE),
    )
    for (left, width), text, edge, fill in parts:
        box(ax, x + left, y, width, ROW_HEIGHT, text, edge=edge, fill=fill)
    ax.add_patch(
        Rectangle((x + 6, y), 92, ROW_HEIGHT, facecolor="none", edgecolor=INK, linewidth=1.8)
    )


def memory(ax: Axes, rank: int, y: float, fringe_y: float) -> None:
    x = PANELS[rank]
    (left, width), text = (STRIP.left, "0-7") if rank == 0 else (STRIP.right, "8-15")
    own = f"own block:\nexperts {text}"
    box(ax, x + left, y, width, ROW_HEIGHT, own, edge=OWNERS[rank], fill=TINTS[rank])
    left, width = STRIP.boundary
    box(ax, x + left, fringe_y, width, FRINGE_HEIGHT, "fringe", edge=OWNERS[rank], fill="white")


def mappings(ax: Axes) -> None:
    """Own block and peer's block into each view."""
    high, low = HIGH_ROW, LOW_ROW
    own_x, right_x = PANELS[0] + 24.5, PANELS[1] + 79.5
    arrow(ax, (own_x, high), (own_x, low + ROW_HEIGHT), 0)
    arrow(ax, (right_x, low + ROW_HEIGHT), (right_x, high), 1)
    y = high + ROW_HEIGHT - 4.5
    arrow(ax, (PANELS[0] + 43, y), (PANELS[1] + 6, y), 0)
    y = low + 4.5
    arrow(ax, (PANELS[1] + 61, y), (PANELS[0] + 98, y), 1)


def fringe_copies(ax: Axes) -> None:
    """Both fringes into the boundary page of each view."""
    high, low = HIGH_ROW, LOW_ROW
    upper, lower = high - FRINGE_HEIGHT / 2 - 1, low + ROW_HEIGHT + FRINGE_HEIGHT / 2 + 1
    first, second = PANELS[0] + 49, PANELS[0] + 55
    copy(ax, [(first, upper - FRINGE_HEIGHT / 2), (first, low + ROW_HEIGHT)], 0)
    copy(ax, [(PANELS[1] + 43, lower), (second, lower), (second, low + ROW_HEIGHT)], 1)
    first, second = PANELS[1] + 49, PANELS[1] + 55
    copy(ax, [(second, lower + FRINGE_HEIGHT / 2), (second, high)], 1)
    copy(ax, [(PANELS[0] + 61, upper), (first, upper), (first, high)], 0)


def labels(ax: Axes) -> None:
    middle = PANEL_WIDTH / 2
    text = "view, read-only: one [16, ...] tensor for the kernel"
    note(ax, PANELS[0] + middle, LOW_ROW - 6.5, text)
    note(ax, PANELS[1] + middle, HIGH_ROW + ROW_HEIGHT + 6.5, text)
    text = "own experts: sealed memory files"
    note(ax, PANELS[0] + 6, HIGH_ROW + ROW_HEIGHT + 6.5, text, align="left")
    note(ax, PANELS[1] + 98, LOW_ROW - 6.5, text, align="right")


def legend(ax: Axes) -> None:
    y = 12.0
    ax.plot([6, 20], [y, y], color=INK, linewidth=2.2)
    ax.text(23, y, "mapped in place, never copied", va="center", size=9, color=INK)
    ax.plot([100, 114], [y, y], color=INK, linewidth=1.3, linestyle=(0, (3, 2)))
    text = "copied once at start-up, where two ranks share a page"
    ax.text(117, y, text, va="center", size=9, color=INK)


def main() -> None:
    figure = pyplot.figure(figsize=(9.2, 9.2 * (HEIGHT - 4) / WIDTH), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, WIDTH)
    ax.set_ylim(4, HEIGHT)
    ax.axis("off")
    for rank in range(2):
        panel(ax, rank)
    view(ax, 0, LOW_ROW)
    view(ax, 1, HIGH_ROW)
    memory(ax, 0, HIGH_ROW, HIGH_ROW - FRINGE_HEIGHT / 2 - 1 - FRINGE_HEIGHT / 2)
    memory(ax, 1, LOW_ROW, LOW_ROW + ROW_HEIGHT + 1)
    mappings(ax)
    fringe_copies(ax)
    labels(ax)
    legend(ax)
    figure.savefig(OUT, metadata={"Date": None, "Creator": "docs/draw_dwdp.py"})


if __name__ == "__main__":
    main()
