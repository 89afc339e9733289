# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The parts of a check, each of which says what it needs beside the CUDA driver.

* A part runs on a device: a GPU, or the fake driver where the suite is rehearsed.
* A part whose needs the device lacks is reported as not run. It never counts as passed.
* A part that raises is reported as an error, and the parts after it run all the same.
"""

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from figures import say_end

REHEARSE = "--rehearse"
PATIENCE = 5.0 if REHEARSE in sys.argv else 1.0
"""Limits in seconds are times this: a rehearsal shares its CPUs with others."""

RAN, ERROR, NOT_RUN = "ran", "error", "not run"


class Need(StrEnum):
    """What a part may need that the fake driver doesn't have."""

    TORCH = "torch.cuda"
    GRAPHS = "CUDA graphs"
    TRITON = "Triton"
    VLLM = "vLLM"
    SANITIZER = "compute-sanitizer"
    TWO_GPUS = "two GPUs"


@dataclass(frozen=True)
class Part:
    name: str
    run: Callable[[Any], None]
    needs: tuple[Need, ...]

    def attempt(self, device: Any) -> str:
        """Run on the device if it can; returns the outcome, which it has reported."""
        if missing := [need for need in self.needs if need not in device.offers]:
            say_end(self.name, NOT_RUN, why=f"needs {', '.join(missing)}")
            return NOT_RUN
        start = time.perf_counter()
        outcome, why = RAN, ""
        try:
            self.run(device)
            assert not device.violations, device.violations
        except Exception:
            outcome, why = ERROR, traceback.format_exc(limit=-6)
        say_end(self.name, outcome, seconds=time.perf_counter() - start, why=why)
        return outcome


def part(name: str, *needs: Need) -> Callable[[Callable[[Any], None]], Part]:
    """Make a function of a device a part of a check."""
    return lambda run: Part(name, run, needs)


def run_parts(*parts: Part) -> None:
    """What a check's script does; exits with 1 if a part failed."""
    device = make_device()
    outcomes = [one.attempt(device) for one in parts]
    sys.exit(ERROR in outcomes)


def make_device() -> Any:
    """The fake driver where the script was told to rehearse, else the GPUs at hand."""
    if REHEARSE in sys.argv:
        from fake_gpu import FakeGpu

        return FakeGpu()
    from gpu import Gpu

    return Gpu()
