# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks that vLLM's source has the definitions that dwdp relies on, without importing vLLM.

    python tests/contract/vllm_source.py vllm-0.33.0-cp38-abi3-manylinux1_x86_64.whl ...

Takes package folders (`.../vllm`) and wheels. Prints the entries of the contract (seams.py) that
are missing, and exits with 1 if there is one.
"""

import ast
import sys
import zipfile
from pathlib import Path

try:
    from contract.seams import CONTRACT, Seam
except ImportError:  # run as a script
    from seams import CONTRACT, Seam


def missing(source: Path) -> list[Seam]:
    """The entries of the contract that a package folder (`.../vllm`) or a wheel lacks."""
    return [seam for seam in CONTRACT if not _has(source, seam)]


def _has(source: Path, seam: Seam) -> bool:
    text = _read(source, seam.file)
    if text is None:
        return False
    scope: ast.AST = ast.parse(text)
    for part in seam.name.split("."):
        found = next((node for node in _nodes(scope) if part in _names(node)), None)
        if found is None:
            return False
        scope = found
    return True


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


def main() -> int:
    num_missing = 0
    for source in map(Path, sys.argv[1:]):
        lacking = missing(source)
        num_missing += len(lacking)
        print(f"{source}: {len(CONTRACT) - len(lacking)} of {len(CONTRACT)} seams found")
        for seam in lacking:
            print(f"  missing: {seam.file}: {seam.name}")
    return 1 if num_missing else 0


if __name__ == "__main__":
    sys.exit(main())
