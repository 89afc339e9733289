# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The table of docs/configuration.md: every option, made of DwdpConfig.

python tests/docs/option_table.py docs/configuration.md
"""

import dataclasses
import inspect
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

from vllm_dwdp.config import FETCH_MODES, DwdpConfig

BEGIN, END = "<!-- begin of the options -->", "<!-- end of the options -->"
HEAD = ("key", "type", "default", "meaning")
TYPES = {
    "int": "whole number",
    "int | str": 'whole number or `"auto"`',
    "float": "number",
    "bool": "`true` or `false`",
    "str": "text",
}
SECTION = re.compile(r"^#+ (.*`.*)$", re.MULTILINE)


class Words(NamedTuple):
    """What DwdpConfig's docstring says of an option. default: of an option that may be None."""

    meaning: str
    default: str


def words() -> dict[str, Words]:
    """By option, what the docstring says."""
    text = inspect.cleandoc(DwdpConfig.__doc__ or "")
    entries = re.findall(r"^(\w+): (.*(?:\n .*)*)", text, re.MULTILINE)
    return {name: _words(" ".join(entry.split())) for name, entry in entries}


def _words(entry: str) -> Words:
    meaning, _, default = entry.rstrip(".").partition("; default: ")
    return Words(re.sub(r"'([a-z:]+)'", r"`\1`", meaning), default)


def table(page: str) -> list[str]:
    """The rows; a key links the section of the page whose heading has it."""
    rows = [_row(field, page) for field in dataclasses.fields(DwdpConfig)]
    return [f"| {' | '.join(row)} |" for row in (HEAD, ("---",) * len(HEAD), *rows)]


def shown(page: str) -> list[str]:
    """The rows of the page's table."""
    return page.partition(BEGIN)[2].partition(END)[0].strip().splitlines()


def anchor_of(name: str, page: str) -> str:
    """The anchor of the section about an option. Raises LookupError if there is none."""
    for heading in SECTION.findall(page):
        if f"`{name}`" in heading:
            return re.sub(r"[^\w -]", "", heading).replace(" ", "-").lower()
    raise LookupError(f"expected a heading with `{name}` on the page; write that section.")


def _row(field: "dataclasses.Field[object]", page: str) -> tuple[str, str, str, str]:
    says = words()[field.name]
    kind = TYPES[inspect.formatannotation(field.type).removesuffix(" | None")]
    if field.name == "fetch":
        kind = ", ".join(f'`"{mode}"`' for mode in FETCH_MODES)
    default = says.default if field.default is None else f"`{_as_json(field.default)}`"
    return f"[`{field.name}`](#{anchor_of(field.name, page)})", kind, default, says.meaning


def _as_json(value: object) -> str:
    is_whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if is_whole else value)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    text = file.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text("\n".join([before + BEGIN, "", *table(text), "", END]) + after)
