# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which cores, which NUMA node and which part of its memory a CPU rank gets."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from vllm.utils.cpu_resource_utils import LogicalCPUInfo

from vllm_dwdp._core import HostDriver
from vllm_dwdp.config import ConfigError
from vllm_dwdp.device.numa import numa_node_of, own_numa_node, read_numa_nodes
from vllm_dwdp.engine.compat import cgroup_memory_limit
from vllm_dwdp.engine.setup import cpu_host
from vllm_dwdp.engine.setup.core_lists import BIND_VARIABLE as BIND
from vllm_dwdp.engine.setup.cpu_host import PLACEMENT_VARIABLES as PLACEMENT
from vllm_dwdp.engine.setup.cpu_host import (
    cores_of_ranks,
    own_cores,
    share_memory,
)

TWO_NODES = {0: 0b00001111, 1: 0b11110000}


@pytest.mark.parametrize(
    ("cores", "nodes", "node"),
    [
        ({0, 3}, TWO_NODES, 0),
        ({4}, TWO_NODES, 1),
        ({3, 4}, TWO_NODES, -1),
        ({0, 8}, TWO_NODES, -1),
        ({0, 1}, {0: 0b11}, 0),
        ({0, 1}, {0: 0, 2: 0b11}, 2),
        ({0, 1}, {}, -1),
        (set(), TWO_NODES, -1),
    ],
)
def test_node_is_that_of_all_cores(cores, nodes, node):
    assert numa_node_of(cores, nodes) == node


def test_nodes_are_read_from_the_kernels_masks(tmp_path):
    masks = {"node0": "00000000,ffffffff\n", "node10": "00000003,00000000\n"}
    for name, mask in masks.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpumap").write_text(mask)
    (tmp_path / "online").write_text("0,10\n")
    assert read_numa_nodes(tmp_path) == {0: 2**32 - 1, 10: 0b11 << 32}


def test_kernel_without_numa_has_no_nodes(tmp_path):
    assert read_numa_nodes(tmp_path / "missing") == {}


def test_memory_on_the_own_node_is_allowed_or_warned_of_once():
    nodes = read_numa_nodes()
    if len(nodes) == 1:
        assert own_numa_node() == next(iter(nodes))
    driver = HostDriver(numa_node=own_numa_node())
    for _ in range(3):
        driver.create_block(driver.granularity)
    expected = 0 if may_set_memory_policy() else 1
    assert len(driver.warnings) == expected, driver.warnings


def may_set_memory_policy():
    """Whether mbind works here; calls it without dwdp's driver."""
    import ctypes
    import mmap
    import platform

    if platform.machine() != "x86_64" or own_numa_node() < 0:
        return own_numa_node() < 0
    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    mask = ctypes.c_ulong(1 << own_numa_node())
    sys_mbind, preferred = 237, 1
    size = ctypes.c_ulong(mmap.PAGESIZE)
    return libc.syscall(sys_mbind, address, size, preferred, ctypes.byref(mask), 65, 0) == 0


@pytest.fixture
def four_cores(monkeypatch):
    """A host with two memory nodes of two cores, a core has two logical CPUs; sets no variables."""
    cpus = [LogicalCPUInfo(cpu, cpu % 4, cpu % 4 // 2) for cpu in range(8)]
    monkeypatch.setattr(cpu_host, "get_allowed_cpu_list", lambda: cpus)
    monkeypatch.setattr("vllm.utils.cpu_resource_utils.get_memory_affinity", lambda: [0, 1])
    monkeypatch.setattr(cpu_host, "cgroup_memory_limit", lambda: None)
    monkeypatch.setattr(
        cpu_host, "get_memory_node_info", lambda node: SimpleNamespace(total_memory=64 << 30)
    )
    for name in (BIND, "CPU_VISIBLE_MEMORY_NODES", "VLLM_CPU_SIM_MULTI_NUMA", *PLACEMENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("VLLM_CPU_NUM_OF_RESERVED_CPU", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "command", "cores"),
    [
        ({}, range(2), [[4, 5], [6, 7]]),
        ({BIND: ""}, range(2), [[4, 5], [6, 7]]),
        ({BIND: "Auto"}, range(2), [[4, 5], [6, 7]]),
        ({BIND: "nobind"}, range(2), [list(range(8))] * 2),
        ({BIND: "0-3"}, range(2), [[0, 1], [2, 3]]),
        ({BIND: "0-3"}, range(1, 2), [None, [0, 1, 2, 3]]),
        ({BIND: "4|0,2-3"}, range(2), [[4], [0, 2, 3]]),
        ({BIND: "4|0,2-3"}, range(1, 2), [[4], [0, 2, 3]]),
        ({"CPU_VISIBLE_MEMORY_NODES": "1"}, range(2), [[6], [7]]),
        (
            {"CPU_VISIBLE_MEMORY_NODES": "1", "VLLM_CPU_SIM_MULTI_NUMA": "1"},
            range(2),
            [[4, 5], [6, 7]],
        ),
        ({"VLLM_CPU_NUM_OF_RESERVED_CPU": "1"}, range(2), [[4], [6]]),
        ({"VLLM_CPU_NUM_OF_RESERVED_CPU": "2"}, range(2), [[4, 5], [6, 7]]),
    ],
)
def test_cores_of_ranks_follow_vllms_variables(four_cores, environment, command, cores):
    for name, value in environment.items():
        four_cores.setenv(name, value)
    assert cores_of_ranks(2, command) == cores


@pytest.mark.parametrize("local_rank", [None, 0, 1])
def test_vllm_finds_a_ranks_cores_by_its_local_rank(four_cores, local_rank):
    four_cores.setenv("VLLM_CPU_SIM_MULTI_NUMA", "1")
    four_cores.setenv("OMP_PROC_BIND", "false")
    before = dict(os.environ)
    with own_cores(SimpleNamespace(data_parallel_rank_local=local_rank), 1, 2):
        entries = os.environ[BIND].split("|")
        of_worker = entries if local_rank is None else entries[local_rank : local_rank + 1]
        assert of_worker == ["6,7"]
        assert not {"VLLM_CPU_SIM_MULTI_NUMA", "OMP_PROC_BIND"} & set(os.environ)
    assert dict(os.environ) == before


def test_nodes_without_cores_are_refused(four_cores):
    cpus = [LogicalCPUInfo(0, 0, 0)]
    four_cores.setattr(cpu_host, "get_allowed_cpu_list", lambda: cpus)
    four_cores.setenv("CPU_VISIBLE_MEMORY_NODES", "1")
    with pytest.raises(ConfigError, match="CPU_VISIBLE_MEMORY_NODES='1' have none of the cores"):
        cores_of_ranks(2, range(2))


@pytest.mark.parametrize(
    ("bind", "num_ranks", "shares"),
    [
        ("", 2, [1.0, 1.0]),
        ("", 4, [0.5, 0.5, 0.5, 0.5]),
        ("0,1|0,1|2,3", 3, [0.5, 0.5, 1.0]),
        ("1-2|3", 2, [1.0, 1.0]),
        ("nobind", 2, [0.5, 0.5]),
    ],
)
def test_memory_is_divided_by_the_ranks_of_a_node(four_cores, bind, num_ranks, shares):
    four_cores.setenv(BIND, bind)
    assert [fraction(rank, num_ranks) for rank in range(num_ranks)] == [s * 0.9 for s in shares]


def test_rank_of_another_command_may_be_on_the_same_node(four_cores):
    four_cores.setenv(BIND, "2-3")
    assert fraction(1, 2, range(1, 2)) == 0.45


def test_given_cache_size_leaves_the_fraction_alone(four_cores):
    assert fraction(0, 2, kv_cache_memory_bytes=1 << 30) == 0.9


def fraction(rank, num_ranks, command=None, kv_cache_memory_bytes=None):
    cache = SimpleNamespace(gpu_memory_utilization=0.9, kv_cache_memory_bytes=kv_cache_memory_bytes)
    share_memory(SimpleNamespace(cache_config=cache), num_ranks, rank, command)
    return cache.gpu_memory_utilization


def test_limit_of_the_control_group_is_read():
    """Compares the limit with the kernel's own file; without a limit both are None."""
    file = Path("/sys/fs/cgroup/memory.max")
    text = file.read_text().strip() if file.exists() else "max"
    if text != "max" or not Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists():
        assert cgroup_memory_limit() == (None if text == "max" else int(text))
