# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The arms: which servers each of them has, on which parts, with which options of vLLM."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_dwdp.bench.parts import Parts

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
    if (on_all_cores := parts.for_one_engine()) is not None:
        found["one"] = [ServerRecipe((), on_all_cores)]
    return found
