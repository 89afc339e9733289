# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Works out on which Ray nodes the ranks of an offline job run: whole groups on every node.

vLLM has no part in this placement, unlike in that of `vllm serve` (see engine/setup/ray_nodes.py).
This module asks neither Ray nor the environment: callers pass in what they read.
"""

from collections.abc import Iterator, Mapping, Sequence

from vllm_dwdp.engine.setup.ray_nodes import RayNode


def nodes_with_groups(
    nodes: Sequence[RayNode], *, job_size: int, group_size: int, needs: Mapping[str, float]
) -> list[tuple[RayNode, int]]:
    """The nodes in turn, each with the ranks that it gets: as many whole groups as it has room for.

    needs: the resources of one rank. Raises ValueError with what the nodes have free if there are
    too few.
    """
    placed = list(_filled(nodes, job_size, group_size, needs))
    if (found := sum(number for _, number in placed)) == job_size:
        return placed
    each = " and ".join(f"{number:g} {kind}" for kind, number in needs.items())
    raise ValueError(
        f"expected Ray nodes with room for {job_size} ranks of {each} each, whole groups of "
        f"{group_size} on a node, found room for {found}, free are "
        f"{'; '.join(map(str, nodes)) or 'no nodes'}; start nodes with more, or ask for fewer "
        "ranks or smaller groups (dwdp_size)."
    )


def _filled(
    nodes: Sequence[RayNode], job_size: int, group_size: int, needs: Mapping[str, float]
) -> Iterator[tuple[RayNode, int]]:
    left = job_size
    for node in nodes:
        room = min(int(node.free.get(kind, 0) // number) for kind, number in needs.items())
        if number := min(left, room // group_size * group_size):
            yield node, number
            left -= number
