# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The tables of docs/formats.md and docs/compatibility.md that scripts print."""

from collections.abc import Iterable
from typing import Any

PROBE = "the probe's table"
CPU = "the table of CPUs"
VERSIONS = "the table of versions"
"""Names by which comments around a table call it."""

HEAD = ("weights", "kernel", "GPU", "shared by two ranks")


def lines(results: Iterable[dict[str, Any]]) -> list[str]:
    """Rows of a Markdown table."""
    rows = [HEAD, ["---"] * len(HEAD), *map(_row, results)]
    return [f"| {' | '.join(row)} |" for row in rows]


def _row(result: dict[str, Any]) -> list[str]:
    weights, kernel, device = result["case"].rsplit(", ", 2)
    return [weights, kernel, device, result["verdict"].replace("|", "/")]


def replace(page: str, table: Iterable[str], name: str = PROBE) -> str:
    """The page with another table in the place of the one of this name."""
    begin, end = _marks(name)
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return "\n".join([before + begin, "", *table, "", end]) + after


def read(page: str, name: str = PROBE) -> list[str]:
    """The rows of the page's table of this name."""
    begin, end = _marks(name)
    _, _, rest = page.partition(begin)
    return rest.partition(end)[0].strip().splitlines()


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- begin of {name} -->", f"<!-- end of {name} -->"
