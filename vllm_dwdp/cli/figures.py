# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Figures, which need matplotlib, and the sentences for when they can't be drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

from vllm_dwdp.cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_figure(path: Path) -> None:
    """Raises CommandError if no figure can be written to this file, whatever it shows."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CommandError(
            f"--figure needs matplotlib, which isn't installed ({error}): pip install "
            "'vllm-dwdp[plan]'.",
            ExitCode.FAILED,
        ) from error
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in known:
        raise CommandError(
            f"expected a figure's file to end with one of {', '.join(sorted(known))}, got {path}."
        )


def save(figure: "Figure", path: Path) -> None:
    """Raises CommandError if the file can't be written."""
    try:
        figure.savefig(path)
    except OSError as error:
        raise CommandError(f"expected to write a figure to {path}: {error}.") from error
