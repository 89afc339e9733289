# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks that docs/data-parallel-fields.md names every file of vLLM that reads one of the fields.

    python tests/contract/data_parallel_uses.py vllm-0.33.0-cp38-abi3-manylinux1_x86_64.whl ...

Prints each use that the page doesn't explain, and exits with 1 if there is one.
"""

import ast
import fnmatch
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data-parallel-fields.md"
PREFIX = "data_parallel_"
FIELDS = ("index", "rank", "rank_local", "size", "size_local", "external_lb", "hybrid_lb")
EITHER_LB = "local_engines_only"
"""A property of vLLM's config that reads `external_lb` and `hybrid_lb`."""


class Use(NamedTuple):
    """A file of vLLM's package that reads one of the fields."""

    file: str
    field: str


def unexplained(source: Path) -> list[Use]:
    """The uses in a package folder (`.../vllm`) or a wheel that the page doesn't name, sorted."""
    explained = list(_explained(PAGE.read_text()))
    return sorted(use for use in uses(source) if not _is_among(use, explained))


def uses(source: Path) -> set[Use]:
    """Every use in a package folder or a wheel. The object whose field is read doesn't matter."""
    return {Use(file, field) for file, text in _files(source) for field in _fields_read(text)}


def _explained(page: str) -> Iterator[tuple[str, str]]:
    """(pattern of file names, field) for each row of the page's tables."""
    fields: list[str] = []
    for line in page.splitlines():
        if line.startswith("### "):
            fields = re.findall(r"`(\w+)`", line)
        elif line.startswith("| `") and fields:
            for pattern in re.findall(r"`([^`]+)`", line.split("|")[1]):
                yield from ((pattern, field) for field in fields)


def _is_among(use: Use, explained: list[tuple[str, str]]) -> bool:
    return any(
        field == use.field and fnmatch.fnmatch(use.file, pattern) for pattern, field in explained
    )


def _fields_read(text: str) -> set[str]:
    if PREFIX not in text and EITHER_LB not in text:
        return set()
    names = {name for node in ast.walk(ast.parse(text)) if (name := _name_read(node))}
    both = {"external_lb", "hybrid_lb"} if EITHER_LB in names else set()
    return both | {field for field in FIELDS if PREFIX + field in names}


def _name_read(node: ast.AST) -> str | None:
    """The attribute that the expression reads by a dot or by getattr; None if it reads none."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        return node.attr
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "getattr":
        return getattr(node.args[1], "value", None)
    return None


def _files(source: Path) -> Iterator[tuple[str, str]]:
    if source.is_dir():
        for path in source.rglob("*.py"):
            yield path.relative_to(source).as_posix(), path.read_text()
        return
    with zipfile.ZipFile(source) as wheel:
        for name in wheel.namelist():
            if name.startswith("vllm/") and name.endswith(".py"):
                yield name.removeprefix("vllm/"), wheel.read(name).decode()


def main() -> int:
    found = [(source, use) for source in map(Path, sys.argv[1:]) for use in unexplained(source)]
    for source, use in found:
        print(f"{source}: {use.file} reads {PREFIX}{use.field}, which {PAGE.name} doesn't explain")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
