# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The report as text and as JSON. docs/doctor.schema.json describes the JSON."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from textwrap import TextWrapper
from typing import Any

from vllm_dwdp.doctor.examination import Line
from vllm_dwdp.doctor.finding import Status
from vllm_dwdp.doctor.host import Options

SCHEMA_VERSION = 1
WIDTH = 100
INDENT = " " * 36


def to_json(versions: Mapping[str, str], options: Options, lines: Iterable[Line]) -> dict[str, Any]:
    """All lines as JSON values. Keys stay as they are; new ones may come."""
    all_lines = list(lines)
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": dict(versions),
        "dwdp_size": options.dwdp_size,
        "checks": [_line_to_json(line) for line in all_lines],
        "counts": count(all_lines),
    }


def count(lines: Iterable[Line]) -> dict[str, int]:
    """How many lines have each status."""
    found = Counter(line.finding.status for line in lines)
    return {status.value: found[status] for status in Status}


def head(versions: Mapping[str, str]) -> str:
    return "vllm-dwdp doctor\n" + ", ".join(f"{name} {text}" for name, text in versions.items())


def to_text(line: Line, *, with_remedy: bool = True) -> Iterator[str]:
    """The rows of one line: its status, its title and its text, and beneath it the remedy."""
    start = f"  {line.finding.status.value:<9} {line.title:<23} "
    yield from _wrap(line.finding.text, start)
    if line.finding.remedy and with_remedy:
        yield from _wrap(line.finding.remedy, f"{INDENT}> ", f"{INDENT}  ")


def tail(lines: Iterable[Line]) -> str:
    counts = count(lines)
    return ", ".join(f"{number} {status}" for status, number in counts.items())


def _line_to_json(line: Line) -> dict[str, str]:
    return {
        "group": line.group,
        "name": line.name,
        "title": line.title,
        "status": line.finding.status.value,
        "text": line.finding.text,
        "remedy": line.finding.remedy,
    }


def _wrap(text: str, start: str, indent: str = INDENT) -> list[str]:
    """Rows of at most WIDTH characters; long words, such as paths, stay whole."""
    wrapper = TextWrapper(
        WIDTH,
        initial_indent=start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(" ".join(text.split())) or [start.rstrip()]
