# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The parts of a check. Each part says what it needs in addition to the CUDA driver.

* A part runs on a device: a GPU, or in a rehearsal the fake driver.
* A part whose needs the device lacks is reported as not run. It never counts as passed.
* A part that raises is reported as an error, and the parts after it still run.
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
"""Limits in seconds are multiplied by this, since a rehearsal shares its CPUs with other work."""

RAN, ERROR, NOT_RUN = "ran", "error", "not run"


class Need(StrEnum):
    """A feature that a part may need and that a device may lack."""

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
        """Run the part if the device offers all its needs; reports and returns the outcome."""
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
    """Decorator: makes a part of a check from a function that takes a device."""
    return lambda run: Part(name, run, needs)


def run_parts(*parts: Part) -> None:
    """The main function of a check's script; exits with 1 if a part failed, else with 0."""
    device = make_device()
    outcomes = [one.attempt(device) for one in parts]
    sys.exit(ERROR in outcomes)


def make_device() -> Any:
    """The fake driver if the script has the argument `--rehearse`, else the GPU."""
    if REHEARSE in sys.argv:
        from fake_gpu import FakeGpu

        return FakeGpu()
    from gpu import Gpu

    return Gpu()
