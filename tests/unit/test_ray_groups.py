# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The ranks of an offline job go to Ray nodes as whole groups, or the nodes are refused."""

import pytest

from vllm_dwdp.engine.setup.ray_nodes import RayNode, needs_of_engine
from vllm_dwdp.offline.ray_groups import nodes_with_groups


def nodes(*free):
    return [RayNode(f"10.0.0.{n}", f"host{n}", found) for n, found in enumerate(free, 1)]


def numbers(found, *, job_size, group_size, device="CPU"):
    placed = nodes_with_groups(
        found, job_size=job_size, group_size=group_size, needs=needs_of_engine(device)
    )
    return [(node.name, number) for node, number in placed]


@pytest.mark.parametrize(
    ("cpus", "job_size", "group_size", "expected"),
    [
        ((4, 4), 2, 2, [("host1", 2)]),
        ((4, 4), 4, 2, [("host1", 2), ("host2", 2)]),
        ((7, 3, 4), 4, 2, [("host1", 2), ("host3", 2)]),  # no part of a group
        ((8, 4), 6, 2, [("host1", 4), ("host2", 2)]),
        ((2, 12), 4, 4, [("host2", 4)]),
        ((3, 2), 2, 1, [("host1", 1), ("host2", 1)]),
    ],
)
def test_nodes_get_as_many_whole_groups_as_they_have_room_for(cpus, job_size, group_size, expected):
    found = nodes(*({"CPU": float(number)} for number in cpus))
    assert numbers(found, job_size=job_size, group_size=group_size) == expected


def test_a_rank_on_a_gpu_needs_a_cpu_as_well():
    found = nodes({"CPU": 3.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0})
    assert numbers(found, job_size=4, group_size=2, device="GPU") == [("host1", 2), ("host2", 2)]


def test_too_little_room_is_refused_with_what_the_nodes_have_free():
    with pytest.raises(ValueError) as caught:
        numbers(nodes({"CPU": 7.0}, {"CPU": 2.0}), job_size=4, group_size=2)
    assert str(caught.value) == (
        "expected Ray nodes with room for 4 ranks of 2 CPU each, whole groups of 2 on a node, "
        "found room for 2, free are 10.0.0.1 (host1): 7 CPU; 10.0.0.2 (host2): 2 CPU; start nodes "
        "with more, or ask for fewer ranks or smaller groups (dwdp_size)."
    )
