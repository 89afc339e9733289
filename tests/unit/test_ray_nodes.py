# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Groups lie in one memory domain of a Ray cluster, or the cluster is refused with its nodes."""

import dataclasses

import pytest

from vllm_dwdp.engine.setup.ray_nodes import (
    RayJob,
    RayNode,
    nodes_of_ranks,
    ranks_of_nodes,
    reason_unplaceable,
)

CPU_JOB = RayJob(
    size=4,
    size_local=2,
    dwdp_size=2,
    address="10.0.0.1",
    strategy="strict",
    device="CPU",
    shares_host_memory=True,
)
GPU_JOB = dataclasses.replace(CPU_JOB, device="GPU", shares_host_memory=False)


def cpu_nodes(*cpus):
    return [
        RayNode(f"10.0.0.{number}", f"host{number}", {"CPU": float(free)})
        for number, free in enumerate(cpus, 1)
    ]


def gpu_nodes(*gpus, domains=("", "")):
    return [
        RayNode(f"10.0.0.{number}", f"host{number}", {"CPU": 16.0, "GPU": float(free)}, domain)
        for number, (free, domain) in enumerate(zip(gpus, domains, strict=True), 1)
    ]


def changed(job=CPU_JOB, **fields):
    return dataclasses.replace(job, **fields)


@pytest.mark.parametrize(
    ("nodes", "fields", "expected"),
    [
        (cpu_nodes(8), {"size_local": 4}, (4,)),
        (cpu_nodes(4, 4), {}, (2, 2)),
        (cpu_nodes(4, 1, 4), {}, (2, 2)),  # 'strict' skips nodes without room for size_local
        (cpu_nodes(4, 16), {"strategy": "fill"}, (2, 2)),
        (cpu_nodes(4, 1, 4), {"strategy": "fill"}, (2, 1, 1)),
        (cpu_nodes(4, 16), {"strategy": "fill", "size": 8}, (2, 6)),
        (cpu_nodes(4, 4), {"size": 6}, (2, 2)),
    ],
)
def test_ranks_fill_nodes_in_the_order_of_vllm(nodes, fields, expected):
    job = changed(**fields)
    assert ranks_of_nodes(nodes_of_ranks(nodes, job)) == expected
    of_other_order = nodes_of_ranks(nodes[1:] + nodes[:1], job)
    assert of_other_order[0].address == job.address, "the front-end's node comes first"


@pytest.mark.parametrize(
    ("nodes", "fields"),
    [
        (cpu_nodes(8), {"size_local": 4}),
        (cpu_nodes(4, 4), {}),
        (cpu_nodes(4, 16), {"strategy": "fill", "size": 8}),
    ],
)
def test_whole_groups_on_each_node_are_accepted(nodes, fields):
    assert reason_unplaceable(nodes, changed(**fields)) is None


@pytest.mark.parametrize(
    ("nodes", "fields", "sentence"),
    [
        (cpu_nodes(8), {"address": "10.0.0.9"}, "a Ray node at .* 10.0.0.9, free are 10.0.0.1 "),
        (cpu_nodes(4, 4), {"size_local": 4}, "4 engines of 2 CPU each, vLLM would place 4 on 10"),
        (cpu_nodes(4, 3), {}, "vLLM would place 2 on 10.0.0.2 .*host2.: 3 CPU; set "),
        (cpu_nodes(1, 4, 4), {}, "vLLM finds room for 0 by .*=strict"),
        (cpu_nodes(1, 8), {"strategy": "fill"}, "vLLM finds room for 0 by .*=fill"),
        (cpu_nodes(4, 1), {}, "vLLM finds room for 2 by .*=strict and .*-local 2"),
        (cpu_nodes(2, 8), {"size_local": 1, "strategy": "fill"}, "place ranks 0 to 1 on .* and"),
        (cpu_nodes(4, 4), {"dwdp_size": 4}, r"ranks 0 to 3 on .*a multiple of dwdp_size \(4\)"),
        (cpu_nodes(4, 4, 4), {"size": 6, "dwdp_size": 3}, "ranks 0 to 2 on 10.0.0.1 and 10.0.0.2"),
    ],
)
def test_cluster_that_tears_a_group_apart_or_is_too_small_is_refused(nodes, fields, sentence):
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(reason_unplaceable(nodes, changed(**fields)))


def test_engine_on_a_gpu_takes_a_gpu_and_a_cpu():
    assert GPU_JOB.engine == {"GPU": 1, "CPU": 1}
    assert reason_unplaceable(gpu_nodes(2, 2), GPU_JOB) is None
    reason = reason_unplaceable(gpu_nodes(2, 1), GPU_JOB)
    assert reason is not None and "10.0.0.2 (host2): 16 CPU, 1 GPU" in reason


@pytest.mark.parametrize(
    ("domains", "job", "is_accepted"),
    [
        (("a", "a"), changed(GPU_JOB, dwdp_size=4), True),
        (("a", "b"), changed(GPU_JOB, dwdp_size=4), False),
        (("", ""), changed(GPU_JOB, dwdp_size=4), False),
        (("a", "a"), changed(GPU_JOB, dwdp_size=4, shares_host_memory=True), False),
        (("a", "b"), GPU_JOB, True),
    ],
)
def test_group_on_gpus_may_have_the_nodes_of_one_domain(domains, job, is_accepted):
    reason = reason_unplaceable(gpu_nodes(2, 2, domains=domains), job)
    assert (reason is None) == is_accepted
    if reason is not None:
        assert ("nvidia.com/gpu.clique" in reason) != job.shares_host_memory
