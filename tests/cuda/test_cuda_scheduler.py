# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The scheduler on the CUDA path: kernels read right bytes in whatever order the streams run."""

import pytest
from support.fake_cuda import OUT_OF_MEMORY
from support.gpu_ranks import make_ranks

from vllm_dwdp._core import DriverError
from vllm_dwdp.config import FetchMode
from vllm_dwdp.fetch.policy import Policy

DIRECT, PREFETCH = FetchMode.DIRECT, FetchMode.PREFETCH


@pytest.mark.parametrize("use_batches", [True, False])
@pytest.mark.parametrize("dwdp_size", [1, 2, 3])
@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_every_kernel_reads_right_bytes(fake, dwdp_size, num_slots, use_batches):
    for seed in range(6):
        fake.reset(seed)
        ranks = make_ranks(fake, dwdp_size=dwdp_size, num_slots=num_slots, use_batches=use_batches)
        ranks[0].scheduler.start()
        for mode in (PREFETCH, PREFETCH, DIRECT, PREFETCH, DIRECT, DIRECT, PREFETCH):
            for rank in ranks:
                rank.step(mode)
        assert [rank.num_wrong_reads() for rank in ranks] == [0] * dwdp_size
        assert fake.violations == []


def test_every_layer_after_the_first_step_was_begun_before_it_asked(fake):
    (rank,) = make_ranks(fake)[:1]
    rank.scheduler.start()
    for _ in range(4):
        rank.step()
    assert rank.counters.misses == 0
    assert rank.counters.hits == 4 * 3
    assert rank.num_wrong_reads() == 0


def test_layer_that_runs_twice_in_a_step_and_one_cut_short(fake):
    for seed in range(6):
        fake.reset(seed)
        (rank,) = make_ranks(fake)[:1]
        for layers in ([0, 0, 1, 2, 2], [0, 1], [0, 1, 2], [2, 1, 0]):
            for layer in layers:
                rank.run(layer)
        assert rank.num_wrong_reads() == 0


@pytest.mark.parametrize("nth", range(1, 5))
@pytest.mark.parametrize(
    "symbol", ["cuEventRecord", "cuStreamIsCapturing", "cuMemcpyBatchAsync", "cuStreamWaitEvent"]
)
def test_step_after_one_that_a_driver_call_broke_reads_right_bytes(fake, symbol, nth):
    """A slot whose copies were not all submitted is not taken for a slot that is filling."""
    (rank,) = make_ranks(fake, use_batches=symbol == "cuMemcpyBatchAsync")[:1]
    rank.step()
    rank.step()
    assert rank.num_wrong_reads() == 0
    fake.fail(symbol, nth, OUT_OF_MEMORY)
    with pytest.raises(DriverError, match=f"{symbol}.*OUT_OF_MEMORY"):
        rank.step()
    rank.num_wrong_reads()  # forgets the reads of the failed step
    for mode in (PREFETCH, DIRECT, PREFETCH):
        rank.step(mode)
    assert rank.num_wrong_reads() == 0
    rank.scheduler.stop()


def test_steps_cost_no_waiting_of_the_host(fake):
    ranks = make_ranks(fake)
    waits = [fake.calls(name) for name in ("cuCtxSynchronize", "cuStreamSynchronize")]
    for _ in range(3):
        ranks[0].step()
    assert [fake.calls(n) for n in ("cuCtxSynchronize", "cuStreamSynchronize")] == waits
    assert ranks[0].num_wrong_reads() == 0


def test_stop_returns_when_the_gpu_has_copied(fake):
    """`stop` waits on the host until the copies have ended, since memory may be freed after it.

    `wait` only orders kernels after copies.
    """
    (rank,) = make_ranks(fake)[:1]
    rank.scheduler.start()
    rank.step()
    before = fake.calls("cuStreamSynchronize")
    rank.scheduler.stop()
    assert fake.calls("cuStreamSynchronize") == before + 1
    rank.step()
    assert rank.num_wrong_reads() == 0


def test_copies_are_calls_of_their_own_unless_batches_are_asked_for(fake):
    (rank,) = make_ranks(fake, num_layers=2, num_slots=1)[:1]
    rank.step()
    assert fake.calls("cuMemcpyBatchAsync") == 0
    assert fake.calls("cuMemcpyDtoDAsync") == rank.counters.slices > 0
    assert rank.num_wrong_reads() == 0


def test_a_round_is_one_batch(fake):
    (rank,) = make_ranks(fake, num_layers=2, num_slots=1, use_batches=True)[:1]
    rank.step()
    batches, copies = fake.calls("cuMemcpyBatchAsync"), rank.counters.slices
    assert 0 < batches <= copies
    assert fake.calls("cuMemcpyDtoDAsync") == 0
    assert rank.num_wrong_reads() == 0


def test_captured_prefetch_is_refused_and_captured_direct_steps_replay(fake):
    """A capture would lose a batch of copies, and the driver would report no error."""
    (rank,) = make_ranks(fake)[:1]
    rank.scheduler.start()
    rank.scheduler.fence_graph()
    assert fake.begin_capture(rank.stream) == 0
    rank.step(DIRECT)
    rank.scheduler.policy = Policy.always(PREFETCH)
    with pytest.raises(DriverError, match=r"under graph capture.*'direct' or 'selective'"):
        rank.run(0)
    graph = fake.end_capture(rank.stream)
    assert graph is not None
    assert rank.num_wrong_reads() > 0, "a capture runs nothing"
    fake.destroy_graph(graph)


def test_replayed_direct_steps_leave_slots_warm_for_prefetch(fake):
    (rank,) = make_ranks(fake)[:1]
    rank.step()
    assert fake.begin_capture(rank.stream) == 0
    rank.step(DIRECT)
    graph = fake.end_capture(rank.stream)
    for _ in range(3):
        assert fake.launch(graph, rank.stream) == 0
        rank.step()
    assert rank.num_wrong_reads() == 0
    assert rank.counters.misses == 2, "of the first step only"
    fake.destroy_graph(graph)
