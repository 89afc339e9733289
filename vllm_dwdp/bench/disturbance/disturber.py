# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The process that disturbs a round."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from vllm_dwdp.bench.errors import BenchError

HERE = Path(__file__).parent
READY = b"ready\n"
"""What the process prints once it disturbs."""


@dataclass(frozen=True)
class Disturber:
    """What is taken, and by which program with which arguments."""

    name: str
    program: Path
    arguments: Sequence[str]

    @classmethod
    def of_core(cls, core: int) -> "Disturber":
        return cls(f"half of core {core}", HERE / "core.py", [str(core)])

    @classmethod
    def of_gpu(cls, device: str) -> "Disturber":
        return cls(f"half of the time of {device}", HERE / "gpu.py", [device])

    @property
    def takes_a_core(self) -> bool:
        return self.program.name == "core.py"

    @contextlib.contextmanager
    def running(self) -> Iterator["Running"]:
        """Disturb until the `with` block ends.

        Raises BenchError if the program doesn't start, or ends before the block does.
        """
        command = [sys.executable, str(self.program), *self.arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None, "the process was started with a pipe"
                if process.stdout.readline() != READY:
                    raise BenchError(self._ended())
                yield Running(process.pid)
                if process.poll() is not None:
                    raise BenchError(self._ended())
            finally:
                process.kill()

    def _ended(self) -> str:
        return f"expected a process that takes {self.name}, but it has ended; its error is above."


class Running:
    """A process that disturbs."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._began_s = time.monotonic()
        self._used_s = self._cpu_s()

    def share_of_core(self) -> float:
        """The share of one core that the process has used since it was ready."""
        return (self._cpu_s() - self._used_s) / (time.monotonic() - self._began_s)

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)
