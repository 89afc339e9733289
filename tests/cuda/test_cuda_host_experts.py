# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Experts in host memory: views show them, slots hold copies of them, and peers read them."""

import gc

import pytest
from support.fake_cuda import HOST_VIRTUAL_MEMORY
from support.gpu_ranks import make_ranks

from vllm_dwdp._core import DriverError, HostDriver
from vllm_dwdp.config import FetchMode


@pytest.mark.parametrize("dwdp_size", [1, 2, 3])
@pytest.mark.parametrize("mode", [FetchMode.DIRECT, FetchMode.PREFETCH])
def test_every_rank_reads_right_bytes(fake, dwdp_size, mode):
    ranks = make_ranks(fake, num_experts=9, dwdp_size=dwdp_size, host_experts=2)
    for rank in ranks:
        for _ in range(3):
            rank.step(mode)
        assert rank.num_wrong_reads() == 0
    if mode is FetchMode.PREFETCH:
        copied = ranks[0].counters.bytes_fetched[mode.value]
        assert all(num_bytes > 0 for num_bytes in copied), "from every peer, and from the host"


def test_a_rank_alone_copies_what_lies_on_its_host_and_nothing_else(fake):
    (rank,) = make_ranks(fake, num_experts=8, dwdp_size=1, host_experts=3)
    rank.step(FetchMode.PREFETCH)
    assert rank.num_wrong_reads() == 0
    page = rank.driver.granularity
    rows = 3 * page + page // 8, page * 3 // 2
    inside = sum(3 * row // page * page for row in rows)
    assert 0 < rank.slots.num_bytes // 2 <= inside


def test_out_of_host_memory_names_the_option(fake):
    fake.set_host_capacity(0)
    with pytest.raises(DriverError, match=r"block of experts in host memory.*lower dwdp.host_exp"):
        make_ranks(fake, num_experts=8, dwdp_size=1, host_experts=3)


def test_a_gpu_that_cannot_use_host_memory_is_refused(fake):
    fake.set_attribute(HOST_VIRTUAL_MEMORY, 0)
    with pytest.raises(DriverError, match=r"HOST_NUMA_VIRTUAL_MEMORY.*leave dwdp.host_experts out"):
        fake.driver().create_block(4096, on_host=True)


def test_ranks_on_cpus_refuse_host_blocks():
    with pytest.raises(DriverError, match="all of whose memory is the host's"):
        HostDriver().create_block(1 << 21, on_host=True)


def test_nothing_is_left_of_host_memory(fake):
    ranks = make_ranks(fake, num_experts=8, dwdp_size=2, host_experts=3)
    ranks[0].step(FetchMode.PREFETCH)
    ranks[0].num_wrong_reads()
    del ranks
    gc.collect()
    assert not fake.leaks
