# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A copy that doesn't end ends the rank; the log names its layer, its peer and its bytes."""

import logging
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from support.log_lines import log_lines

from vllm_dwdp.fetch.copy_watch import NUM_LOOKS, CopiedSlice, CopyWatch

LAYERS = [[CopiedSlice(1, 4096)], [CopiedSlice(0, 4096), CopiedSlice(1, 8192)]]


class StuckCopier:
    """A copier whose progress changes only when the test changes it."""

    def __init__(self, **progress):
        self.progress = SimpleNamespace(
            **({"ticket": 1, "layer": 1, "has_begun": True, "num_ended": 1} | progress)
        )

    def first_under_way(self):
        return self.progress


def watch(copier, end_rank=lambda: None):
    return CopyWatch(copier, LAYERS, rank=2, job_ranks=range(4, 7), end_rank=end_rank)


def looks(watched, number):
    return [watched.look() for _ in range(number)]


def test_copy_that_gets_no_further_is_found_after_a_number_of_looks():
    copier = StuckCopier()
    *before, last = looks(watch(copier), NUM_LOOKS + 1)
    assert not any(before)
    assert last is copier.progress


@pytest.mark.parametrize("change", [{"ticket": 2}, {"num_ended": 2}])
def test_copies_that_get_further_are_not_stuck(change):
    copier = StuckCopier()
    watched = watch(copier)
    for _ in range(5):
        assert not any(looks(watched, NUM_LOOKS))
        for name, by in change.items():
            setattr(copier.progress, name, getattr(copier.progress, name) + by)


def test_copier_without_work_is_not_stuck():
    copier = StuckCopier()
    watched = watch(copier)
    looks(watched, NUM_LOOKS)
    stuck, copier.progress = copier.progress, None
    assert not any(looks(watched, 3 * NUM_LOOKS))
    copier.progress = stuck
    assert not any(looks(watched, NUM_LOOKS))


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (
            {},
            "rank 6 ends: copy 2 of 2 for MoE layer 1, 8192 bytes from the memory of rank 5, has",
        ),
        (
            {"has_begun": False, "num_ended": 0},
            "dwdp rank 6 ends: the copies for MoE layer 1 (12288 bytes) have not begun, because",
        ),
        ({"layer": -1}, "copy 2 of chosen experts has not ended"),
    ],
)
def test_sentence_names_rank_layer_peer_and_bytes(progress, expected):
    copier = StuckCopier(**progress)
    assert expected in watch(copier).describe(copier.progress, 60)


def test_rank_ends_with_the_sentence_in_its_log():
    ended = threading.Event()
    with log_lines(logging.ERROR) as lines:
        watch(StuckCopier(), ended.set).start(interval_s=0.001)
        assert ended.wait(30)
    assert [line[:16] for line in lines] == ["dwdp rank 6 ends"]


HANGING_RANK = """
import signal, time
from types import SimpleNamespace
from vllm_dwdp.engine import parent_watch
from vllm_dwdp.fetch.copy_watch import CopyWatch
parent_watch.GRACE_S = 1
signal.signal(signal.SIGTERM, lambda *_: None)
progress = SimpleNamespace(ticket=1, layer=-1, has_begun=True, num_ended=0)
copier = SimpleNamespace(first_under_way=lambda: progress)
watch = CopyWatch(copier, [], rank=0, job_ranks=[0], end_rank=parent_watch.end_for_good)
watch.start(interval_s=0.001)
while True:
    time.sleep(100)
"""


def test_process_that_can_not_end_in_order_is_ended_all_the_same():
    """While a driver call hangs, Python runs no signal handlers."""
    ended = subprocess.run([sys.executable, "-c", HANGING_RANK], timeout=60, capture_output=True)
    assert ended.returncode == -signal.SIGALRM
