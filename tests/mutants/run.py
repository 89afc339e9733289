# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Removes each guard in turn from a copy of the package; its tests must fail then.

Prints a line per mutant. Exits with 1 when one survives, or when the tests fail without any.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mutants import MUTANTS, Mutant

import vllm_dwdp._core

ROOT = Path(__file__).resolve().parents[2]
START = """
import sys
is_redirect = lambda finder: any(w in repr(finder) for w in ("Editable", "Redirect"))
sys.meta_path = [finder for finder in sys.meta_path if not is_redirect(finder)]
import pathlib, pytest, vllm_dwdp
assert pathlib.Path(vllm_dwdp.__file__).is_relative_to(pathlib.Path.cwd()), vllm_dwdp.__file__
sys.exit(pytest.main(sys.argv[1:]))
"""
"""Runs pytest on the copy: an editable install would be found first."""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="dwdp-mutants-") as folder:
        package = copy_package(Path(folder))
        for tests in sorted({mutant.tests for mutant in MUTANTS}):
            if first := failing_test(folder, tests):
                print(f"without any mutant, {first} fails")
                return 1
        survivors = [m for m in MUTANTS if not is_killed(m, package, folder)]
    print(f"{len(MUTANTS) - len(survivors)} of {len(MUTANTS)} mutants killed")
    return 1 if survivors else 0


def copy_package(folder: Path) -> Path:
    """The package with its core, the tests and their model, for mutants to be made of them."""
    (folder / "examples").symlink_to(ROOT / "examples")
    shutil.copytree(ROOT / "tests", folder / "tests")
    shutil.copytree(ROOT / "vllm_dwdp", folder / "vllm_dwdp")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copy(vllm_dwdp._core.__file__, folder / "vllm_dwdp")
    return folder / "vllm_dwdp"


def is_killed(mutant: Mutant, package: Path, folder: str) -> bool:
    file = package / mutant.file
    original = file.read_text()
    assert original.count(mutant.old) == 1, f"{mutant.name}: not once in {mutant.file}"
    file.write_text(original.replace(mutant.old, mutant.new))
    try:
        killer = failing_test(folder, mutant.tests)
    finally:
        file.write_text(original)
    print(f"{'killed  ' if killer else 'SURVIVED'}  {mutant.name}: {killer or '-'}", flush=True)
    return killer is not None


def failing_test(folder: str, tests: str) -> str | None:
    """The first test that fails, or None."""
    try:
        done = _pytest(folder, tests)
    except subprocess.TimeoutExpired:
        return "a test that hangs"
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+::\S+)", done.stdout, re.MULTILINE)
    assert found, f"no test failed, pytest ended with {done.returncode}:\n{done.stdout[-2000:]}"
    return found[1]


def _pytest(folder: str, tests: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START, "-x", "-q", "-p", "no:cacheprovider", tests],
        cwd=folder,
        env={**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": f"{folder}/.hypothesis"},
        capture_output=True,
        text=True,
        timeout=600,
    )


if __name__ == "__main__":
    sys.exit(main())
