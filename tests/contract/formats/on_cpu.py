# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which formats of expert weights stock vLLM runs on this CPU, by its own choice of kernels.

    python tests/contract/formats/on_cpu.py [--page docs/formats.md]

Nothing is forced or replaced; dwdp isn't involved. It prints a line for each case of cases.py that
is for CPUs, with the class of the kernel that vLLM has chosen, or with vLLM's error.
"""

import argparse
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR"}
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[3])]
import table
from cases import Case, all_cases
from forcing import one_process
from layers import build, load, make_checkpoint, process

MAX_LENGTH = 100
"""Characters of an error in the table."""


def outcome(case: Case, index: int) -> str:
    try:
        layer = build(case, index)
        load(layer, make_checkpoint(layer))
        process(layer)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".rstrip(".")
        return textwrap.shorten(text, MAX_LENGTH, placeholder=" ...")
    return type(layer.quant_method.moe_kernel.fused_experts).__name__


def outcomes() -> Iterator[tuple[str, str]]:
    """(method, kernel or error) of each case."""
    with one_process():
        for index, case in enumerate(all_cases()):
            if case.is_cpu:
                yield case.method, outcome(case, index)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--page", type=Path, help="page whose table to replace, docs/formats.md")
    given = parser.parse_args()
    lines = ["| weights | stock vLLM on this CPU |", "| --- | --- |"]
    for method, found in outcomes():
        lines.append(f"| {method} | {found} |")
        print(lines[-1], flush=True)
    if given.page:
        page = given.page.read_text()
        given.page.write_text(table.replace(page, lines, table.CPU))


if __name__ == "__main__":
    main()
