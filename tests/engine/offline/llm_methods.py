# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The table of docs/llm.md: what vllm_dwdp.LLM does with every method of vllm.LLM.

python tests/engine/offline/llm_methods.py docs/llm.md
"""

import inspect
import sys
from pathlib import Path

import vllm

from vllm_dwdp import LLM
from vllm_dwdp.offline.batch_methods import BatchMethods
from vllm_dwdp.offline.every_rank import EveryRank
from vllm_dwdp.offline.refused_methods import REFUSED

BEGIN, END = "<!-- begin of the methods -->", "<!-- end of the methods -->"
HEAD = ("method", "over ranks", "what it does")


def methods_of_vllm() -> list[str]:
    """The public methods of vllm.LLM, by name."""
    found = inspect.getmembers(vllm.LLM, callable)
    return sorted(name for name, _ in found if not name.startswith("_"))


def table() -> list[str]:
    rows = [HEAD, ("---",) * len(HEAD), *map(_row, methods_of_vllm())]
    return [f"| {' | '.join(row)} |" for row in rows]


def shown(page: str) -> list[str]:
    """The rows of the page's table."""
    return page.partition(BEGIN)[2].partition(END)[0].strip().splitlines()


def _row(name: str) -> tuple[str, str, str]:
    if name in REFUSED:
        return f"`{name}`", "refused", REFUSED[name]
    says = inspect.cleandoc(inspect.getdoc(getattr(LLM, name, None)) or "MISSING").partition("\n")
    return f"`{name}`", _kind(name), says[0]


def _kind(name: str) -> str:
    if name in vars(EveryRank):
        return "on every rank"
    if name == "from_engine_args":
        return "-"
    return "in batches" if name in vars(BatchMethods) else "prompt by prompt"


if __name__ == "__main__":
    file = Path(sys.argv[1])
    before, _, rest = file.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text("\n".join([before + BEGIN, "", *table(), "", END]) + after)
