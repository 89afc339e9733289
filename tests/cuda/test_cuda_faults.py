# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Each driver call fails in turn: the error is clear, and nothing is left behind."""

import gc

import pytest
from support.fake_cuda import OUT_OF_MEMORY, num_memory_files
from support.gpu_ranks import make_ranks

from vllm_dwdp._core import DriverError, HandleType

pytestmark = pytest.mark.whole

SYMBOLS = (
    "cuInit",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuMemGetAllocationGranularity",
    "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent",
    "cuCtxSynchronize",
    "cuCtxGetStreamPriorityRange",
    "cuMemCreate",
    "cuMemAddressReserve",
    "cuMemMap",
    "cuMemSetAccess",
    "cuMemExportToShareableHandle",
    "cuMemImportFromShareableHandle",
    "cuMemcpyAsync",
    "cuMemsetD8Async",
    "cuStreamCreateWithPriority",
    "cuEventCreate",
    "cuEventRecord",
    "cuStreamWaitEvent",
    "cuStreamIsCapturing",
    "cuMemcpyBatchAsync",
    "cuMemcpyDtoDAsync",
)

ADVICE = {"cuMemAddressReserve": "lift this process's limit on them (ulimit -v)"}
"""The advice for calls that fail for another reason than full memory."""

CALLED_BY_DESTRUCTORS = ("cuCtxPushCurrent", "cuCtxSynchronize")
"""Destructors carry on when these calls fail."""


def run(fake, **options):
    """Make two ranks and run two steps on each."""
    ranks = make_ranks(fake, **options)
    for rank in ranks:
        rank.scheduler.start()
        rank.step()
        rank.step()
    assert [rank.num_wrong_reads() for rank in ranks] == [0, 0]


def options_for(symbol):
    return {"use_batches": symbol == "cuMemcpyBatchAsync"}


@pytest.fixture(scope="module", params=HandleType, ids=lambda handle_type: handle_type.name)
def handle_type(request, tmp_path_factory):
    """The type of handle by which the ranks share memory."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param is HandleType.FABRIC:
            patch.setenv("FAKE_CUDA_FABRIC", str(tmp_path_factory.mktemp("domain")))
        yield request.param


@pytest.fixture(scope="module")
def num_calls(library, handle_type):
    """By symbol, its number of calls in a run without a fault."""
    counts = {}
    for symbol in SYMBOLS:
        library.reset()
        run(library, handle_type=handle_type, **options_for(symbol))
        gc.collect()
        counts[symbol] = library.calls(symbol)
    return counts


def places(last):
    """The numbers of the first, the second, a middle and the last call, without duplicates."""
    return sorted({1, min(2, last), (last + 1) // 2, last})


def test_faults_are_many(num_calls):
    assert sum(len(places(last)) for last in num_calls.values()) >= 40


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_fault_leaves_nothing_behind(fake, handle_type, num_calls, symbol, place):
    last = num_calls[symbol]
    assert last > 0, "the run calls it"
    if place >= len(places(last)):
        pytest.skip(f"a run calls {symbol} {last} times")
    nth = places(last)[place]
    fake.fail(symbol, nth, OUT_OF_MEMORY)
    sentence = ""
    try:
        run(fake, handle_type=handle_type, **options_for(symbol))
    except DriverError as error:
        sentence = str(error)
    gc.collect()
    if sentence:
        assert symbol in sentence
        assert "CUDA_ERROR_OUT_OF_MEMORY" in sentence
        assert ADVICE.get(symbol, "free GPU memory") in sentence
    else:
        assert symbol in CALLED_BY_DESTRUCTORS and place > 0, "a fault went unnoticed"
    assert fake.leaks == []
    assert num_memory_files() == 0
