# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Traces of real traffic: files with a line for each prompt."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_dwdp.simulation.chunk import Request
from vllm_dwdp.simulation.errors import ScenarioError

TIME, TOKENS = "arrival_s", "prompt_tokens"
Row = Mapping[str, Any]


def read_trace(path: Path) -> Sequence[Request]:
    """The prompts of a JSONL or CSV file, by time of arrival; the first one arrives at second 0.

    A line of a JSONL file is an object with `arrival_s` (seconds) and `prompt_tokens`. A CSV file
    has columns of these names. Other keys and columns are ignored. Raises ScenarioError with the
    file and line of what can't be read.
    """
    rows = sorted(_read_rows(path), key=lambda row: row[0])
    if not rows:
        raise ScenarioError(f"The trace {path} has no prompts: give it a line for each of them.")
    first = rows[0][0]
    return [Request(idx, time - first, tokens) for idx, (time, tokens) in enumerate(rows)]


def _read_rows(path: Path) -> list[tuple[float, int]]:
    if path.suffix.lower() not in READERS:
        raise ScenarioError(f"The name of a trace must end in .jsonl or .csv, got {path}.")
    found: list[tuple[float, int]] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found.extend(_row(row) for row in READERS[path.suffix.lower()](file))
    except OSError as error:
        raise ScenarioError(f"Can't read the trace {path}: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise ScenarioError(
            f"Prompt {len(found) + 1} of the trace {path} must have a number {TIME} and a whole "
            f"number {TOKENS} of at least 1: {error}."
        ) from error
    return found


def _json_lines(lines: Iterable[str]) -> Iterator[Row]:
    return (json.loads(line) for line in lines if line.strip())


def _csv_lines(lines: Iterable[str]) -> Iterator[Row]:
    return iter(csv.DictReader(lines))


READERS = {".jsonl": _json_lines, ".csv": _csv_lines}


def _row(row: Row) -> tuple[float, int]:
    time, tokens = float(row[TIME]), float(row[TOKENS])
    if not math.isfinite(time) or tokens < 1 or tokens != int(tokens):
        raise ValueError(f"got {row[TIME]!r} and {row[TOKENS]!r}")
    return time, int(tokens)
