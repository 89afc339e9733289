# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Rules for imports between the package's rooms: none climbs, and few rooms import vLLM."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "vllm_dwdp"
ROOMS = (
    *("_core", "plugin", "layout", "config", "memory", "device", "fetch"),
    *("group.errors", "group.meet", "group.handover", "group.session", "rank"),
    *("engine.compat", "engine.seams", "engine.vllm_source"),
    *("engine.parent_watch", "engine.request_path"),
    *(
        "engine.setup",
        "engine.admission",
        "engine.metrics",
        "engine.moe.kernel",
        "engine.moe",
        "engine.worker",
        "engine.self_check",
        "offline",
    ),
    *("planning", "simulation", "doctor", "trace", "bench", "cli"),
)
"""The rooms (folders and modules) from the lowest to the highest.

A room may import from itself and from lower rooms.
"""

LAZY = {"plugin": "engine", "": "offline"}
"""Modules that import from a higher room on demand, with that room. "" is the package itself."""

PUBLIC_VLLM = {
    *("vllm", "vllm.exceptions", "vllm.logger", "vllm.sampling_params", "vllm.engine.arg_utils"),
    "vllm.entrypoints.chat_utils",
}


class Import(NamedTuple):
    """`module` imports `name` at `line`; both are dotted, without the package's own name."""

    module: str
    name: str
    line: int
    is_own: bool


def read_imports(folder: Path) -> Iterator[Import]:
    """All imports in the Python files of the package's folder, also those inside of functions."""
    for path in sorted(folder.rglob("*.py")):
        module = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix("__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            for name in _imported(node):
                own = name.removeprefix(PACKAGE + ".") if name.startswith(PACKAGE) else None
                yield Import(module.rstrip("."), own or name, node.lineno, own is not None)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "the package has no relative imports"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def room_of(module: str) -> int:
    """The place of the module's room in ROOMS."""
    found = [i for i, room in enumerate(ROOMS) if f"{module}.".startswith(f"{room}.")]
    assert found, f"{module} stands in no room of tests/unit/test_rooms.py"
    return found[0]


def climbs(folder: Path) -> list[str]:
    """The imports from a higher room."""
    return [
        f"{one.module}, line {one.line}: imports {one.name}, which stands higher"
        for one in read_imports(folder)
        if one.is_own
        and not (one.module in LAZY and one.name.startswith(LAZY[one.module]))
        and room_of(one.name) > room_of(one.module)
    ]


def of_vllm(folder: Path) -> list[str]:
    """The imports of vLLM in rooms that must not import it."""
    return [
        f"{one.module}, line {one.line}: imports {one.name}"
        for one in read_imports(folder)
        if one.name.split(".")[0] == "vllm" and not _may_know(one)
    ]


def _may_know(one: Import) -> bool:
    if one.module == "bench.client":  # `vllm bench serve` itself
        return one.name.startswith("vllm.benchmarks.serve.")
    if one.module.startswith("offline."):
        return one.name in PUBLIC_VLLM or one.name.rpartition(".")[0] in PUBLIC_VLLM
    return one.module.startswith("engine.") or one.module == "plugin"


def of_others_in_layout(folder: Path) -> list[str]:
    """The imports in `layout` of anything but itself and the standard library."""
    return [
        f"{one.module}, line {one.line}: imports {one.name}"
        for one in read_imports(folder)
        if one.module.startswith("layout")
        and not (one.name.startswith("layout.") if one.is_own else _is_standard(one.name))
    ]


def _is_standard(name: str) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("rule", [climbs, of_vllm, of_others_in_layout])
def test_rooms_keep_the_rule(rule):
    assert rule(ROOT / PACKAGE) == []


@pytest.mark.parametrize(
    ("rule", "module", "line"),
    [
        (climbs, "fetch.policy", "from vllm_dwdp.group.session import GroupSession"),
        (climbs, "group.meet.store", "def f():\n    from vllm_dwdp.group import session"),
        (climbs, "plugin", "from vllm_dwdp.layout import tensors"),
        (of_vllm, "memory.slots", "import vllm.envs"),
        (of_vllm, "offline.llm", "from vllm.v1.engine import EngineCoreRequest"),
        (of_others_in_layout, "layout.slots", "import torch"),
        (of_others_in_layout, "layout.slots", "from vllm_dwdp.config import DwdpConfig"),
    ],
)
def test_a_line_that_breaks_a_rule_is_found(rule, module, line, tmp_path):
    path = tmp_path / PACKAGE / f"{module.replace('.', '/')}.py"
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    (found,) = rule(tmp_path / PACKAGE)
    assert found.startswith(f"{module}, line ")
