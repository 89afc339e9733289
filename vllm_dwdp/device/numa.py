# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which NUMA node a process runs on, as the kernel says."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

NUMA_NODES = Path("/sys/devices/system/node")
NO_NUMA_NODE = -1


def own_numa_node() -> int:
    """The NUMA node of the cores that this process is bound to, or NO_NUMA_NODE."""
    return numa_node_of(os.sched_getaffinity(0), read_numa_nodes())


def numa_node_of(cores: Iterable[int], nodes: Mapping[int, int]) -> int:
    """The node with all of the cores; NO_NUMA_NODE where they span several or none is known.

    nodes: the cores of each node, as a bit mask.
    """
    wanted = sum(1 << core for core in set(cores))
    found = [node for node, mask in nodes.items() if wanted and not wanted & ~mask]
    return found[0] if found else NO_NUMA_NODE


def read_numa_nodes(root: Path = NUMA_NODES) -> dict[int, int]:
    """By NUMA node, its cores as a bit mask; empty where the kernel doesn't tell."""
    return {
        int(file.parent.name.removeprefix("node")): int(file.read_text().replace(",", ""), 16)
        for file in root.glob("node[0-9]*/cpumap")
    }
