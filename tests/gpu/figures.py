# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks report to the suite in lines of JSON: one for each set of figures, one for each part."""

import json
from collections.abc import Mapping

Range = tuple[float | None, float | None]
"""The lowest and the highest value that is expected; None: no bound on that side."""


def say(title: str, *, expected: Mapping[str, Range] | None = None, **figures: object) -> None:
    """Report measured figures.

    expected: ranges by the names of figures. A figure outside its range is not an error; it is
    reported apart from errors, for a person to judge.
    """
    expected = dict(expected or {})
    misses = [name for name, bounds in expected.items() if not _is_within(figures[name], bounds)]
    ranges = {name: _text(bounds) for name, bounds in expected.items()}
    _print(title=title, figures=figures, expected=ranges, misses=misses)


def say_end(part: str, outcome: str, *, seconds: float = 0.0, why: str = "") -> None:
    """Report how a part ended."""
    _print(part=part, outcome=outcome, seconds=round(seconds, 2), why=why)


def _is_within(value: float, bounds: Range) -> bool:
    low, high = bounds
    return (low is None or value >= low) and (high is None or value <= high)


def _text(bounds: Range) -> str:
    low, high = bounds
    if low is None:
        return f"at most {high}"
    return f"at least {low}" if high is None else f"{low} to {high}"


def _print(**line: object) -> None:
    """Print and flush, so that the line isn't lost if the check hangs later."""
    print(json.dumps(line), flush=True)
