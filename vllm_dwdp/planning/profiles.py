# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Finds the profiles of hardware and of models that come with the package.

They lie in `configs/` of the repository. A wheel carries copies of them inside the package, in
`vllm_dwdp/configs`, where csrc/CMakeLists.txt installs them.
"""

from pathlib import Path

HARDWARE, MODELS = "hardware", "models"
_SUFFIXES = {HARDWARE: ".yaml", MODELS: ".json"}


def folder(kind: str) -> Path:
    """The folder with profiles of this kind: of the wheel, or of the source tree."""
    package = Path(__file__).parents[1]
    installed = package / "configs" / kind
    return installed if installed.is_dir() else package.parent / "configs" / kind


def names(kind: str) -> list[str]:
    """The names of all profiles of this kind, in order."""
    return sorted(path.stem for path in folder(kind).glob(f"*{_SUFFIXES[kind]}"))


def path(kind: str, name: str) -> Path:
    return folder(kind) / f"{name}{_SUFFIXES[kind]}"
