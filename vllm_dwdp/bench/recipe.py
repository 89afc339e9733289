# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The arms: which servers each one has, on which cores or GPUs, with which options of vLLM."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vllm_dwdp.bench.errors import BenchError

DWDP = "dwdp"
WHAT_ARMS_ARE = {
    DWDP: "DWDP: a rank for each part of the machine, and one front-end",
    "tp": "tensor parallelism: one engine over all parts",
    "replicas": "an engine for each part, each with all experts",
    "ep": "data parallelism of attention and expert parallelism",
    "one": "one engine on all cores (CPUs only)",
}


@dataclass(frozen=True)
class ServerRecipe:
    """A server of an arm: its options for `vllm serve`, and variables of its environment."""

    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


class Parts(Protocol):
    """The parts of a machine, one for each rank."""

    kind: str

    def __len__(self) -> int: ...
    def for_parts(self) -> dict[str, str]:
        """The environment of an engine with a worker, or a rank, on each part."""

    def for_part(self, index: int) -> dict[str, str]:
        """The environment of an engine on one part."""


class CoreParts:
    """Equal parts of the cores that this process may use."""

    kind = "cpu"
    VARIABLE = "VLLM_CPU_OMP_THREADS_BIND"

    def __init__(self, num_parts: int) -> None:
        """Raises BenchError if there are too few cores."""
        cores = sorted(os.sched_getaffinity(0))
        size = len(cores) // num_parts
        if not size:
            raise BenchError(f"expected a core for each rank, {num_parts} of them, got {cores}.")
        starts = range(0, num_parts * size, size)
        self._parts = [",".join(map(str, cores[start : start + size])) for start in starts]

    def __len__(self) -> int:
        return len(self._parts)

    def for_parts(self) -> dict[str, str]:
        return {self.VARIABLE: "|".join(self._parts)}

    def for_part(self, index: int) -> dict[str, str]:
        return {self.VARIABLE: self._parts[index]}

    def for_one_engine(self) -> dict[str, str]:
        """The environment of an engine with one worker on the cores of all parts."""
        return {self.VARIABLE: ",".join(self._parts)}


class GpuParts:
    """GPUs, one for each rank."""

    kind = "gpu"
    VARIABLE = "CUDA_VISIBLE_DEVICES"

    def __init__(self, num_parts: int, num_gpus: int) -> None:
        """num_gpus: those that this process sees. Raises BenchError if there are too few."""
        if num_gpus < num_parts:
            raise BenchError(f"expected a GPU for each rank, {num_parts} of them, got {num_gpus}.")
        listed = os.environ.get(self.VARIABLE)
        self._gpus = (listed.split(",") if listed else [str(i) for i in range(num_gpus)])[
            :num_parts
        ]

    def __len__(self) -> int:
        return len(self._gpus)

    def for_parts(self) -> dict[str, str]:
        return {self.VARIABLE: ",".join(self._gpus)}

    def for_part(self, index: int) -> dict[str, str]:
        return {self.VARIABLE: self._gpus[index]}


def arms_on(parts: Parts) -> list[str]:
    """The names of all arms that the machine can have."""
    return list(_all_recipes(parts))


def recipes(names: Sequence[str], parts: Parts) -> dict[str, list[ServerRecipe]]:
    """The servers of each named arm, see `arms_on`."""
    found = _all_recipes(parts)
    return {name: found[name] for name in names}


def _all_recipes(parts: Parts) -> dict[str, list[ServerRecipe]]:
    size, over_all = str(len(parts)), parts.for_parts()
    data_parallel = ("--data-parallel-size", size)
    found = {
        DWDP: [ServerRecipe((*data_parallel, "--distributed-executor-backend", DWDP), over_all)],
        "tp": [ServerRecipe(("--tensor-parallel-size", size), over_all)],
        "replicas": [ServerRecipe((), parts.for_part(i)) for i in range(len(parts))],
        "ep": [ServerRecipe((*data_parallel, "--enable-expert-parallel"), over_all)],
    }
    if isinstance(parts, CoreParts):
        found["one"] = [ServerRecipe((), parts.for_one_engine())]
    return found
