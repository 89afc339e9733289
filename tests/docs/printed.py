# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The texts that the code can print, and whether a sentence of a page is made of them.

Values in a page's sentence are examples, and the code fills in others. So only constant pieces are
compared: those between values of the page with those between variables of the code.
"""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MIN_LENGTH = 12
"""Characters of a piece that is long enough to be told apart from others."""

CPP_STRINGS = re.compile(r'(?:"(?:[^"\\\n]|\\.)*"\s*)+')
VALUES = re.compile(r"\.\.\.|[;:,()\[\]\"']|\S*\d\S*|%\.?\d*[sdrfg]")
"""Where values may stand: dots of omission, punctuation, words with numbers, places of a format."""


@cache
def constant_pieces() -> tuple[str, ...]:
    """All constant pieces of texts in the package and in the core."""
    python = (ast.parse(file.read_text()) for file in (ROOT / "vllm_dwdp").rglob("*.py"))
    cpp = (
        file.read_text() for file in (ROOT / "csrc").rglob("*.*") if file.suffix in {".cc", ".h"}
    )
    texts = [node.value for tree in python for node in ast.walk(tree) if _is_text(node)]
    texts += [_joined(found) for source in cpp for found in CPP_STRINGS.findall(source)]
    pieces = (piece.strip(" .") for text in texts for piece in VALUES.split(text))
    return tuple({piece for piece in pieces if len(piece) >= MIN_LENGTH})


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _joined(literals: str) -> str:
    return "".join(re.findall(r'"((?:[^"\\\n]|\\.)*)"', literals))


def is_known(sentence: str) -> bool:
    """Whether the code prints one of the two longest parts of a sentence that have no value."""
    parts = sorted((part.strip(" .") for part in VALUES.split(sentence)), key=len)[-2:]
    return any(
        len(part) >= MIN_LENGTH
        and (part in piece or (piece in part and 2 * len(piece) >= len(part)))
        for part in parts
        for piece in constant_pieces()
    )
