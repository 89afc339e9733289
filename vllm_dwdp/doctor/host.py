# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What checks ask: the user's options, files of this host, and probes in processes of their own."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_dwdp.doctor.child import ask

SMALLEST_GROUP = 2
DEFAULT_TIME_LIMIT_S = 120.0


@dataclass(frozen=True)
class Options:
    """What the user gave.

    dwdp_size: how many ranks of a group are to run on this host; None if it isn't known.
    time_limit_s: seconds after which a probe counts as one that hangs.
    """

    dwdp_size: int | None = None
    time_limit_s: float = DEFAULT_TIME_LIMIT_S

    @property
    def num_ranks(self) -> int:
        return self.dwdp_size or SMALLEST_GROUP


@dataclass
class Host:
    """This machine. root: where its files lie; tests put files of their own there."""

    options: Options = field(default_factory=Options)
    root: Path = Path("/")
    _answers: dict[str, Any] = field(default_factory=dict)

    def ask(self, probe: str) -> Any:
        """The answer of a module in doctor/probes, which runs once. Raises as child.ask does."""
        if probe not in self._answers:
            try:
                self._answers[probe] = ask(probe, limit_s=self.options.time_limit_s)
            except Exception as error:
                self._answers[probe] = error
        if isinstance(answer := self._answers[probe], Exception):
            raise answer
        return answer

    def path(self, name: str) -> Path:
        """A file of this host by its absolute path."""
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str | None:
        """The text of a file without blanks at its ends; None if it can't be read."""
        try:
            return self.path(name).read_text(errors="replace").strip()
        except OSError:
            return None

    def program(self, name: str) -> str | None:
        """Where a program lies, if it is in PATH."""
        return shutil.which(name)

    def names(self, folder: str, pattern: str) -> list[str]:
        """The names of files in a folder that match a pattern; none if there is no such folder."""
        return sorted(path.name for path in self.path(folder).glob(pattern))

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)
