# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which cores and which NUMA node a CPU rank gets."""

from types import SimpleNamespace

import pytest

from vllm_dwdp._core import HostDriver
from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.cpu_host import (
    cores_of_rank,
    numa_node_of,
    own_cores,
    own_numa_node,
    read_numa_nodes,
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


@pytest.mark.parametrize(
    ("num_cores", "num_ranks", "shares"),
    [
        (4, 2, [[0, 1], [2, 3]]),
        (5, 2, [[0, 1, 2], [3, 4]]),
        (2, 3, [[0], [1], [0]]),
    ],
)
def test_ranks_share_the_cores(num_cores, num_ranks, shares):
    cores = list(range(num_cores))
    assert [cores_of_rank(cores, rank, num_ranks) for rank in range(num_ranks)] == shares


def may_set_memory_policy():
    """Whether mbind works here at all, asked without the driver."""
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


def test_too_few_given_cores_are_refused(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    config = SimpleNamespace(data_parallel_rank_local=None)
    with pytest.raises(ConfigError, match="cores for 3 ranks"), own_cores(config, 2, 3):
        pass
