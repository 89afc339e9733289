# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""vLLM's own layers are recorded in every fetch mode, and compute what they compute otherwise."""

import pytest
import torch
from fetching_rank import Rank
from layer_group import NUM_LAYERS
from vllm.model_executor.offloader.base import get_offloader, set_offloader

pytestmark = pytest.mark.usefixtures("one_process_group", "stock_offloader")


@pytest.fixture
def stock_offloader():
    before = get_offloader()
    yield
    set_offloader(before)


@pytest.fixture
def make_rank():
    made = []

    def make(fetch):
        made.append(Rank(fetch=fetch, compute_us_per_token=1e6, captured_tokens=0))
        made[-1].fetching.settle()
        return made[-1]

    yield make
    for rank in made:
        rank.close()


@pytest.mark.parametrize("fetch", ["direct", "prefetch", "selective"])
def test_recorded_steps_are_those_that_the_counters_count(make_rank, fetch):
    rank = make_rank(fetch)
    rank.run_step()
    rank.fetching.tracing.start(3)
    for num_tokens in (64, 32, 16, 8):
        rank.run_step(num_tokens)
    recording = rank.fetching.tracing.take()
    assert [run.layer for run in recording.runs] == list(range(NUM_LAYERS)) * 3
    assert [run.num_tokens for run in recording.runs[::NUM_LAYERS]] == [64, 32, 16]
    assert {run.mode for run in recording.runs} == {fetch}
    assert recording.counts["steps"][fetch] == 3
    counted = sum(map(sum, recording.counts["bytes_fetched"].values()))
    assert sum(copy.num_bytes for copy in recording.copies) == counted
    assert {copy.peer for copy in recording.copies} <= {1}
    waited = sum(wait.end_ns - wait.begin_ns for wait in recording.waits) / 1e9
    assert waited == pytest.approx(sum(recording.counts["exposed_seconds"]), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("fetch", ["direct", "prefetch", "selective"])
def test_recording_changes_no_output(make_rank, fetch):
    rank = make_rank(fetch)
    rank.run_step()
    rank.fetching.tracing.start(1)
    rank.run_step()
    rank.run_step()
    plain, recorded, after = rank.outputs[-3:]
    assert all(map(torch.equal, plain, recorded)) and all(map(torch.equal, plain, after))
