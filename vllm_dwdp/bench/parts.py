# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The parts of a machine that ranks and engines run on: GPUs, or equal shares of the cores."""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from vllm_dwdp.bench.disturbance.disturber import Disturber
from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.engine.setup.core_lists import BIND_VARIABLE
from vllm_dwdp.planning.cores import memory_nodes

TOPOLOGY = Path("/sys/devices/system/cpu")


class Parts(ABC):
    """A part for each rank.

    kind: "cpu" or "gpu". holds_all_arms: whether memory is taken to be large enough for all arms.
    """

    kind: ClassVar[str]
    holds_all_arms: ClassVar[bool]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def for_parts(self) -> dict[str, str]:
        """The environment of an engine with a worker, or of a group with a rank, on each part."""

    @abstractmethod
    def for_part(self, index: int) -> dict[str, str]:
        """The environment of an engine on one part."""

    @abstractmethod
    def for_one_engine(self) -> dict[str, str] | None:
        """The environment of an engine with one worker on all parts; None if there is none."""

    @abstractmethod
    def disturber(self) -> Disturber:
        """What disturbs the first part."""


class CoreParts(Parts):
    """Equal shares of the cores that this process may use. Threads of a core stay together."""

    kind = "cpu"
    holds_all_arms = True

    def __init__(self, num_parts: int) -> None:
        """Raises BenchError if there are too few cores."""
        cores = sorted(os.sched_getaffinity(0), key=_place)
        size = len(cores) // num_parts
        if not size:
            raise BenchError(
                f"expected a core for each rank, {num_parts} of them, got {len(cores)}."
            )
        starts = range(0, num_parts * size, size)
        self._cores = [sorted(cores[start : start + size]) for start in starts]

    def __len__(self) -> int:
        return len(self._cores)

    def for_parts(self) -> dict[str, str]:
        return {BIND_VARIABLE: "|".join(map(_listed, self._cores))}

    def for_part(self, index: int) -> dict[str, str]:
        return {BIND_VARIABLE: _listed(self._cores[index])}

    def for_one_engine(self) -> dict[str, str]:
        return {BIND_VARIABLE: _listed(sorted(core for cores in self._cores for core in cores))}

    def disturber(self) -> Disturber:
        return Disturber.of_core(self._cores[0][0])


class GpuParts(Parts):
    """GPUs, one for each rank."""

    kind = "gpu"
    holds_all_arms = False
    VARIABLE = "CUDA_VISIBLE_DEVICES"

    def __init__(self, num_parts: int, num_gpus: int) -> None:
        """num_gpus: those that this process sees. Raises BenchError if there are too few."""
        if num_gpus < num_parts:
            raise BenchError(f"expected a GPU for each rank, {num_parts} of them, got {num_gpus}.")
        seen = os.environ.get(self.VARIABLE)
        all_gpus = seen.split(",") if seen else list(map(str, range(num_gpus)))
        self._gpus = all_gpus[:num_parts]

    def __len__(self) -> int:
        return len(self._gpus)

    def for_parts(self) -> dict[str, str]:
        return {self.VARIABLE: ",".join(self._gpus)}

    def for_part(self, index: int) -> dict[str, str]:
        return {self.VARIABLE: self._gpus[index]}

    def for_one_engine(self) -> None:
        return None

    def disturber(self) -> Disturber:
        return Disturber.of_gpu("cuda:0")


def parts_of_this_machine(num_parts: int) -> Parts:
    """GPUs if there are any. Raises BenchError if there are too few GPUs or cores."""
    import torch

    if torch.cuda.is_available():
        return GpuParts(num_parts, torch.cuda.device_count())
    return CoreParts(num_parts)


def _listed(cores: list[int]) -> str:
    return ",".join(map(str, cores))


def _place(core: int) -> tuple[int, ...]:
    """Where a core lies: its memory node, package and physical core, then its own number."""
    nodes = [index for index, cores in enumerate(memory_nodes()) if core in cores]
    names = ("physical_package_id", "core_id")
    try:
        place = [int((TOPOLOGY / f"cpu{core}/topology/{name}").read_text()) for name in names]
    except OSError:
        place = [0, core]
    return (*nodes, *place, core)
