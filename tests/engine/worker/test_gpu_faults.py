# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Faults of a rank's GPU in a real engine: full memory, and a copy that doesn't end."""

import json
import re

import pytest
from cuda_stand_in import CUDA_STAND_IN

pytestmark = pytest.mark.whole

GPU = CUDA_STAND_IN | {"FAKE_CUDA_GRANULARITY": str(1 << 16)}
"""With this page size the demo model has a fringe and boundary pages."""
BLOCK = (
    "adopting its experts",
    "for a block of experts failed",
    "start more ranks, or keep experts in host memory",
)
SENTENCES = {
    "block": BLOCK,
    "fringe": BLOCK,
    "slot": ("binding its experts", "for a page of a slot failed", "lower dwdp.num_slots"),
    "private page": ("binding its experts", "for a private page", "set dwdp.fetch to 'direct'"),
    "reservation": ("binding its experts", "cuMemAddressReserve of", "ulimit -v"),
}


@pytest.fixture
def prefetching(run_generate, demo_model, tmp_path):
    """Runs two ranks that prefetch on the fake driver; returns the exit code and their log."""

    def run(**environment):
        options = "--eager", "--config", json.dumps({"fetch": "prefetch"})
        done = run_generate(demo_model, tmp_path / "out", *options, **GPU, **environment)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.parametrize("kind", SENTENCES)
def test_start_without_room_for_a_kind_of_memory(prefetching, kind):
    """The caller gets the sentence with which every rank ends."""
    exit_code, log = prefetching(FAKE_GPU_FULL=kind)
    assert exit_code == 1
    last = log[log.rindex("RankDied: ") :].splitlines()[0]
    sentence = last.removeprefix("RankDied: ")
    doing, allocation, remedy = SENTENCES[kind]
    assert sentence.startswith(f"dwdp rank 1 failed while {doing}: OutOfResources: cuMem")
    assert allocation in sentence and remedy in sentence
    assert "CUDA_ERROR_OUT_OF_MEMORY" in sentence
    assert sum(sentence in line for line in log.splitlines() if "ERROR" in line) >= 2


def test_copy_without_an_end_ends_its_rank_and_no_other(prefetching):
    """The other rank runs the prompts that were in flight, so the call returns all outputs."""
    exit_code, log = prefetching(FAKE_GPU_HANGS="1")
    assert exit_code == 0, log[-4000:]
    (sentence,) = re.findall(r"dwdp rank \d ends: .*", log)
    named = (
        r"rank 1 ends: copy \d of \d for MoE layer \d, \d+ bytes from the memory of rank 0, has "
    )
    assert re.match(f"dwdp {named}", sentence)
    assert re.search(r"dwdp rank 1 ended .* prompts in flight are tried once more", log)
