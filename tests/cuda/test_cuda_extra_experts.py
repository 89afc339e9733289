# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Copies of extra experts on the CUDA driver: views show them, and fewer bytes are copied."""

import gc

import pytest
from support.gpu_ranks import make_ranks

from vllm_dwdp.config import FetchMode

NUM_EXPERTS = 9


def counts_of(dwdp_size, *chosen):
    """Counts of three layers: each rank has chosen other ones of these experts."""
    return [
        [[int((e + rank) % NUM_EXPERTS in chosen) for e in range(NUM_EXPERTS)]] * 3
        for rank in range(dwdp_size)
    ]


@pytest.mark.parametrize("host_experts", [0, 2])
@pytest.mark.parametrize("dwdp_size", [2, 3])
@pytest.mark.parametrize("mode", [FetchMode.DIRECT, FetchMode.PREFETCH])
def test_every_rank_reads_right_bytes(fake, dwdp_size, mode, host_experts):
    sizes = {"num_experts": NUM_EXPERTS, "dwdp_size": dwdp_size, "host_experts": host_experts}
    ranks = make_ranks(fake, **sizes, counts=counts_of(dwdp_size, 0, 1, 5))
    for rank in ranks:
        for _ in range(3):
            rank.step(mode)
        assert rank.num_wrong_reads() == 0


def test_a_rank_copies_fewer_bytes(fake):
    copied = []
    for counts in (None, counts_of(2, 6, 7)):
        rank, _ = make_ranks(fake, num_experts=NUM_EXPERTS, counts=counts)
        rank.step(FetchMode.PREFETCH)
        assert rank.num_wrong_reads() == 0
        copied.append(sum(rank.scheduler._layers[0].bytes_by_peer))
    assert 0 < copied[1] < copied[0]


def test_a_rank_alone_keeps_experts_of_its_host_on_the_gpu(fake):
    sizes = {"num_experts": NUM_EXPERTS, "dwdp_size": 1, "host_experts": 4}
    (rank,) = make_ranks(fake, **sizes, counts=counts_of(1, *range(NUM_EXPERTS)))
    rank.step(FetchMode.DIRECT)
    assert rank.num_wrong_reads() == 0
    assert not any(layer.num_slices for layer in rank.scheduler._layers)


def test_nothing_is_left_of_copies(fake):
    ranks = make_ranks(fake, num_experts=NUM_EXPERTS, counts=counts_of(2, 0, 7))
    ranks[0].step(FetchMode.PREFETCH)
    ranks[0].num_wrong_reads()
    del ranks
    gc.collect()
    assert not fake.leaks
