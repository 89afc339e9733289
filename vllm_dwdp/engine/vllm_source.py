# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Looks definitions up in vLLM's source, without importing vLLM."""

import ast
import functools
import zipfile
from pathlib import Path

from vllm_dwdp.engine.seams import CONTRACT, Seam


def missing(source: Path) -> list[Seam]:
    """The entries of the contract that a package folder (`.../vllm`) or a wheel lacks."""
    return [seam for seam in CONTRACT if not _has(source, seam)]


def _has(source: Path, seam: Seam) -> bool:
    scope: ast.AST | None = _parse(source, seam.file)
    if scope is None:
        return False
    for part in seam.name.split("."):
        found = next((node for node in _nodes(scope) if part in _names(node)), None)
        if found is None:
            return False
        scope = found
    return True


@functools.cache
def _parse(source: Path, file: str) -> ast.Module | None:
    text = _read(source, file)
    return None if text is None else ast.parse(text)


def _nodes(scope: ast.AST) -> list[ast.AST]:
    """The arguments of a function, or the definitions and assignments in another scope."""
    if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
        return [*scope.args.args, *scope.args.kwonlyargs]
    nodes = list(getattr(scope, "body", []))
    return nodes + [n for n in ast.walk(scope) if isinstance(n, ast.Assign | ast.AnnAssign)]


def _names(node: ast.AST) -> set[str]:
    targets = getattr(node, "targets", None) or [getattr(node, "target", node)]
    return {
        name
        for target in [t for target in targets for t in getattr(target, "elts", [target])]
        for key in ("name", "id", "attr", "arg")
        if isinstance(name := getattr(target, key, None), str)
    }


def _read(source: Path, file: str) -> str | None:
    if source.is_dir():
        return (source / file).read_text() if (source / file).exists() else None
    with zipfile.ZipFile(source) as wheel:
        name = f"vllm/{file}"
        return wheel.read(name).decode() if name in wheel.namelist() else None
