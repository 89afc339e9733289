# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What nvidia-smi says."""

import subprocess

COMMANDS = {
    "topology": ("topo", "-m"),
    "gpus": ("--query-gpu=index,driver_version,mig.mode.current", "--format=csv,noheader"),
}


def look() -> dict[str, str]:
    """The output of each command. Raises RuntimeError if one fails."""
    return {name: _run(*arguments) for name, arguments in COMMANDS.items()}


def _run(*arguments: str) -> str:
    done = subprocess.run(
        ["nvidia-smi", *arguments], capture_output=True, text=True, check=False, errors="replace"
    )
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise RuntimeError(f"nvidia-smi {arguments[0]} ended with {done.returncode}: {said}")
    return done.stdout
