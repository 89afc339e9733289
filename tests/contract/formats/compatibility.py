# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Prints the table of docs/compatibility.md: every format and kernel, by version of vLLM.

    python tests/contract/formats/compatibility.py docs/compatibility.md docs/results/RUN.md \\
        0.30.0=FILE 0.31.0=FILE ...

A FILE has what probe.py --json wrote with that version. RUN.md has what tests/gpu/vllm_formats.py
wrote on a GPU.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent)]
import table

BY_VERDICT = {
    "same bits": "bits",
    "same values, other bits": "values",
    "refused": "refused",
    "not built here": "-",
}
"""What the table says by the beginning of a verdict."""


def mark(verdict: str) -> str:
    return next(short for begin, short in BY_VERDICT.items() if verdict.startswith(begin))


def on_gpu(results: str) -> dict[str, str]:
    """By case, what its kernel's outputs were on a GPU, out of the results' table."""
    head = "| case | kernel | tensors | copied_mib |"
    _, _, rest = results.partition(head)
    found = {}
    for line in rest.splitlines()[2:]:
        if not line.startswith("|"):
            break
        name, *_, other, _ = [cell.strip() for cell in line.strip("|").split("|")]
        found[name] = other.partition(",")[0] + " differ" if other else "bits"
    return found


def lines(by_version: dict[str, list[dict[str, Any]]], gpu: dict[str, str]) -> Iterator[str]:
    versions = list(by_version)
    header = ["weights", "kernel", "GPU", *versions, "outputs on an H200"]
    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join(['---'] * len(header))} |"
    verdicts = {v: {r["case"]: r["verdict"] for r in found} for v, found in by_version.items()}
    for case in dict.fromkeys(name for found in verdicts.values() for name in found):
        marks = [mark(verdicts[v][case]) if case in verdicts[v] else "-" for v in versions]
        yield f"| {' | '.join([*case.rsplit(', ', 2), *marks, gpu.get(case, 'never run')])} |"


def main() -> None:
    page, results, *named = sys.argv[1:]
    files = dict(name.split("=") for name in named)
    by_version = {version: json.loads(Path(file).read_text()) for version, file in files.items()}
    text = Path(page).read_text()
    made = lines(by_version, on_gpu(Path(results).read_text()))
    Path(page).write_text(table.replace(text, made, table.VERSIONS))


if __name__ == "__main__":
    main()
