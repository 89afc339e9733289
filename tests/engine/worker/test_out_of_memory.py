# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Each allocation of a start fails in turn: all ranks say what to change, and free everything."""

import gc

import pytest
import torch
from fake_gpu_memory import FakeGpuMemory
from layer_group import Model, make_checkpoint
from rank_threads import BOUND, MeetingGroup
from support.fake_cuda import OUT_OF_MEMORY, FakeCuda, num_memory_files

pytestmark = [pytest.mark.usefixtures("one_process_group"), pytest.mark.whole]

SHAPE = NUM_EXPERTS, DTYPE, HAS_BIAS, NUM_LAYERS = 5, torch.bfloat16, False, 1
SIZE = 2
REMEDIES = {
    "of a page with a fabric handle": "use more ranks",
    "for a block of experts": "start more ranks",
    "for a page of a slot": "lower dwdp.num_slots, or set dwdp.fetch to 'direct'",
    "for a private page of a view": "set dwdp.fetch to 'direct'",
}
"""By the name of an allocation in errors, a part of the advice."""


@pytest.fixture(scope="module")
def checkpoint():
    return make_checkpoint(*SHAPE)


@pytest.fixture
def fake():
    library = FakeCuda()
    library.reset()
    yield library
    library.reset()


def endings(checkpoint):
    """Start a new group and free it; returns the ranks' endings."""
    return MeetingGroup(SIZE, None, checkpoint, lambda: Model(*SHAPE), FakeGpuMemory).endings()


def num_calls(fake, symbol, checkpoint):
    """The number of calls of the symbol in a start that succeeds."""
    assert endings(checkpoint) == [BOUND] * SIZE
    gc.collect()
    assert fake.leaks == fake.violations == []
    return fake.calls(symbol)


def fail_each(fake, symbol, checkpoint):
    """Let each call of the symbol fail in turn; yields the sentence with which the ranks end."""
    for nth in range(1, num_calls(fake, symbol, checkpoint) + 1):
        fake.reset()
        fake.fail(symbol, nth, OUT_OF_MEMORY)
        first, second = endings(checkpoint)
        gc.collect()
        assert fake.leaks == fake.violations == []
        assert num_memory_files() == 0
        assert first == second, "all ranks end with one sentence"
        yield first


def test_memory_that_runs_out_at_any_allocation(fake, checkpoint):
    found = set()
    for sentence in fail_each(fake, "cuMemCreate", checkpoint):
        (use,) = [use for use in REMEDIES if f"{use} failed: CUDA_ERROR_OUT_OF" in sentence]
        assert sentence.startswith(("dwdp rank 0 failed while ", "dwdp rank 1 failed while "))
        assert "free GPU memory" in sentence and REMEDIES[use] in sentence
        assert "can't read the memory" not in sentence
        found.add(use)
    assert found == set(REMEDIES), "every kind of memory has been refused"


def test_addresses_that_run_out_at_any_reservation(fake, checkpoint):
    sentences = list(fail_each(fake, "cuMemAddressReserve", checkpoint))
    assert len(sentences) > 10
    for sentence in sentences:
        assert sentence.startswith(("dwdp rank 0 failed while ", "dwdp rank 1 failed while "))
        assert "cuMemAddressReserve of" in sentence and "CUDA_ERROR_OUT_OF_MEMORY" in sentence
        assert "addresses ran out, not memory" in sentence and "ulimit -v" in sentence
