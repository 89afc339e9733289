# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The sentences that pages quote are those that the code prints."""

import dataclasses
import re

import pytest
from printed import ROOT, is_known

from vllm_dwdp.group.meet.manifest import Manifest

DOCS = ROOT / "docs"
OF_VLLM = (
    "Value error, not enough values to unpack",
    "LLM(data_parallel_size=2) is not supported",
)


def first_columns(page: str) -> list[str]:
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    return [re.split(r"(?<!\\)\|", row)[1] for row in rows]


def sentences_of_troubleshooting() -> list[str]:
    columns = first_columns((DOCS / "troubleshooting.md").read_text())
    found = [quoted for column in columns for quoted in re.findall(r"`([^`]+)`", column)]
    return [sentence for sentence in found if " " in sentence and not sentence.startswith(OF_VLLM)]


def sentences_of_configuration() -> list[str]:
    page = (DOCS / "configuration.md").read_text()
    bullets = re.findall(r"^\* `([^`]{30,})`", page, re.MULTILINE)
    return [" ".join(bullet.split()) for bullet in bullets]


@pytest.mark.parametrize("sentence", sentences_of_troubleshooting())
def test_troubleshooting_quotes_sentences_of_the_code(sentence):
    assert is_known(sentence)


@pytest.mark.parametrize("sentence", sentences_of_configuration())
def test_configuration_quotes_errors_of_the_code(sentence):
    assert is_known(sentence)


def test_a_sentence_that_the_code_does_not_print_is_not_known():
    assert not is_known("dwdp rank 1 has lost its way while it was loading; show it the way.")


def test_troubleshooting_explains_only_fields_of_the_manifest():
    section = (DOCS / "troubleshooting.md").read_text()
    section = section.partition("## Differences between ranks")[2].partition("\n## ")[0]
    named = {name for column in first_columns(section) for name in re.findall(r"`(\w+)`", column)}
    assert named and named <= {field.name for field in dataclasses.fields(Manifest)}
