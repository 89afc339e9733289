# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Prints the results of the probe as the table of docs/formats.md."""

from collections.abc import Iterable
from typing import Any

BEGIN, END = "<!-- begin of the probe's table -->", "<!-- end of the probe's table -->"
HEAD = ("weights", "kernel", "GPU", "shared by two ranks")


def lines(results: Iterable[dict[str, Any]]) -> list[str]:
    """Rows of a Markdown table."""
    rows = [HEAD, ["---"] * len(HEAD), *map(_row, results)]
    return [f"| {' | '.join(row)} |" for row in rows]


def _row(result: dict[str, Any]) -> list[str]:
    weights, kernel, device = result["case"].rsplit(", ", 2)
    return [weights, kernel, device, result["verdict"].replace("|", "/")]


def replace(page: str, table: Iterable[str]) -> str:
    """The page with another table."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN, "", *table, "", END]) + after


def read(page: str) -> list[str]:
    """The rows of the page's table."""
    _, _, rest = page.partition(BEGIN)
    return rest.partition(END)[0].strip().splitlines()
