# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Writes the tables of docs/doctor.md from the checks themselves.

python docs/doctor_table.py
"""

import re
from collections.abc import Iterator
from pathlib import Path

from vllm_dwdp.doctor.check import Check
from vllm_dwdp.doctor.examination import CASES_OF_ALL
from vllm_dwdp.doctor.finding import Case
from vllm_dwdp.doctor.groups import GROUPS

PAGE = Path(__file__).with_name("doctor.md")
BEGIN, END = "<!-- begin of the tables -->", "<!-- end of the tables -->"


def with_table(page: str) -> str:
    """The page with tables of today."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = "\n".join(_tables())
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def _tables() -> Iterator[str]:
    yield from _table("Any check", [_row("any", "", case) for case in CASES_OF_ALL])
    for group in GROUPS:
        yield from _table(group.title, [row for one in group.checks for row in _rows(one)])


def _table(title: str, rows: list[str]) -> list[str]:
    head = "| check | what it looks at | status | when | what to do |"
    return [f"### {title}", "", head, "| --- | --- | --- | --- | --- |", *rows, ""]


def _rows(one: Check) -> Iterator[str]:
    title = f"{one.title} (`{one.name}`)"
    if not one.cases:
        yield _row(title, one.looks_at)
    for at, case in enumerate(one.cases):
        yield _row("" if at else title, "" if at else one.looks_at, case)


def _row(title: str, looks_at: str, case: Case | None = None) -> str:
    if case is None:
        return f"| {title} | {looks_at} | ok | always | |"
    remedy = re.sub(r"\{(\w+)\}", lambda found: found[1].upper(), case.remedy)
    return f"| {title} | {looks_at} | {case.status} | {case.when} | {remedy} |"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
