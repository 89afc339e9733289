# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The pages that list options say what the code has, and the other way round."""

import dataclasses
import re
from pathlib import Path

from option_table import shown, table, words

from vllm_dwdp.config import DwdpConfig

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "configuration.md"
OPTIONS = [field.name for field in dataclasses.fields(DwdpConfig)]


def test_the_docstring_of_the_options_has_each_of_them_in_order():
    assert list(words()) == OPTIONS


def test_an_option_without_a_default_value_says_in_words_what_happens():
    fields = dataclasses.fields(DwdpConfig)
    assert [f.name for f in fields if f.default is None and not words()[f.name].default] == []


def test_the_table_of_the_page_is_that_of_the_code():
    page = PAGE.read_text()
    assert shown(page) == table(page)


def test_the_readme_lists_no_option_that_is_not_there():
    section = (
        (ROOT / "README.md").read_text().partition("## Configuration")[2].partition("\n## ")[0]
    )
    keys = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    named = {name for key in keys for name in re.findall(r"`(\w+)`", key)}
    assert named and named <= set(OPTIONS)
