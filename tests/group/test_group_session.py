# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Ranks as real processes: they all start, or all end with the same sentence."""

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
from rank import RankProcess

from vllm_dwdp.group.meet.manifest import REMEDIES

ADVICE = "look at its log, or raise dwdp.timeout_s."


def listening(pid):
    """Addresses on which a process listens for TCP, as /proc shows them."""
    inodes = {
        line.split()[9]: line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    }
    links = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    return [address for inode, address in inodes.items() if f"socket:[{inode}]" in links]


@pytest.mark.parametrize(("size", "dwdp_size"), [(1, 1), (2, 2), (3, 3), (4, 2), (2, 1)])
def test_all_ranks_of_all_groups_start(start, size, dwdp_size):
    manifest = {"placement": [[0, 2]] * dwdp_size}
    ranks = [start(r, size, dwdp_size, manifest=manifest) for r in range(size)]
    assert [rank.ending() for rank in ranks] == ["end: bound"] * size


def test_ranks_of_another_node_have_a_store_of_their_own(start):
    """Ranks 0 and 1, which are on the first node, never come."""
    there = {"store_ranks": (2, 4), "manifest": {"placement": [[0, 2]] * 2}}
    ranks = [start(rank, 4, 2, **there) for rank in (2, 3)]
    assert [rank.ending() for rank in ranks] == ["end: bound"] * 2


@pytest.mark.parametrize("failing", [0, 1])
def test_failure_while_loading_ends_all_with_one_sentence(start, failing):
    ranks = [start(r, 3, **({"fail": "no such file"} if r == failing else {})) for r in range(3)]
    sentence = f"end: dwdp rank {failing} failed while loading: ValueError: no such file"
    assert [rank.ending() for rank in ranks] == [sentence] * 3


def test_ranks_that_still_load_learn_the_cause_though_the_store_has_gone(start):
    ranks = [start(0, fail="no memory", load_s=1), start(1, load_s=4)]
    assert ranks[0].ending() == "end: dwdp rank 0 failed while loading: ValueError: no memory"
    assert not Path(f"/proc/{ranks[0].pid}").exists()
    assert ranks[1].ending() == "end: dwdp rank 0 failed while loading: ValueError: no memory"


def test_failure_in_one_group_ends_the_others_that_still_start(start):
    ranks = [start(r, 4, 2, **({"fail": "bad"} if r == 3 else {"load_s": 3})) for r in range(4)]
    sentence = "end: dwdp rank 3 failed while loading: ValueError: bad"
    assert [rank.ending() for rank in ranks] == [sentence] * 4


TENSOR = "layers.0.w13_weight [4, 8, 8] bfloat16 with strides [64, 8, 1]"


@pytest.mark.parametrize(
    ("field", "value", "difference"),
    [
        ("model_fingerprint", "xyz", "'abc' against 'xyz'"),
        ("dtype", "float16", "'bfloat16' against 'float16'"),
        ("quantization", "fp8", "'None' against 'fp8'"),
        ("dwdp_version", "9", "'0.1.0' against '9'"),
        ("granularity", 65536, "4096 against 65536"),
        (
            "tensors",
            [["layers.0", "w13_weight", [4, 8, 9], [72, 1, 8], "fp8"]],
            f"entry 0 is {TENSOR} against "  # noqa: ISC004
            "layers.0.w13_weight [4, 8, 9] fp8 with strides [72, 1, 8]",
        ),
        ("tensors", [], f"entry 0 is {TENSOR} against missing"),
        ("placement", [[0, 1], [1, 4]], "entry 0 is (0, 2) against (0, 1)"),
    ],
)
def test_different_manifest_ends_both_naming_field_and_values(start, field, value, difference):
    ranks = [start(0), start(1, manifest={field: value})]
    sentence = (
        f"end: dwdp ranks 0 and 1 differ in {field}: {difference}; "
        "start every rank with the same model and options."
    )
    assert [rank.ending() for rank in ranks] == [sentence] * 2


def test_different_tensor_of_which_each_rank_has_its_own_has_a_remedy_of_its_own(start):
    scale = [["layers.0", "w13_input_scale", "0.5"]]
    ranks = [start(0), start(1, manifest={"replicated": scale})]
    sentence = (
        "end: dwdp ranks 0 and 1 differ in replicated: entry 0 is missing against "
        f"layers.0.w13_input_scale = 0.5; {REMEDIES['replicated']}"
    )
    assert [rank.ending() for rank in ranks] == [sentence] * 2


@pytest.mark.parametrize("killed", [0, 1])
def test_rank_killed_while_loading_is_noticed_at_once(start, killed):
    ranks = [start(r, 3, timeout_s=120, load_s=60 if r == killed else 0) for r in range(3)]
    for rank in ranks:
        for line in ("open", "tried"):
            rank.hears(line)
    time.sleep(0.3)
    ranks[killed].kill()
    began = time.monotonic()
    endings = {rank.ending() for r, rank in enumerate(ranks) if r != killed}
    host = ", which hosts the rendezvous," if killed == 0 else ""
    process = f"dwdp rank {killed} (process {ranks[killed].pid})"
    assert endings == {f"end: {process}{host} ended during start-up."}
    assert time.monotonic() - began < 5


def test_rank_that_hangs_on_when_the_others_end_is_ended_by_its_watch(start):
    ranks = [start(0, timeout_s=3), start(1, timeout_s=3, load_s=300, hears_s=2)]
    began = time.monotonic()
    sentence = f"dwdp rank 1 got no further for 3 s (loading); {ADVICE}"
    assert ranks[0].ending() == f"end: {sentence}"
    assert ranks[1].ending() == f"ended: {sentence}"
    assert time.monotonic() - began < 30


def test_error_in_a_watch_ends_all_ranks_with_a_sentence(start):
    """Rank 1's watch can't read what another version may say of its place."""
    loading = {"num_layers": 300, "layer_s": 0.1}
    ranks = [start(0, **loading), start(1, breaks_places=True, **loading)]
    sentence = "dwdp rank 1 failed while it watched its peers: ValueError: a place it can't read"
    assert [rank.ending() for rank in ranks] == [f"end: {sentence}"] * 2


def test_rank_killed_while_binding_is_named_not_the_broken_connection(start):
    ranks = [start(0, bind_s=1), start(1, bind_s=60)]
    for rank in ranks:
        for line in ("open", "tried", "met"):
            rank.hears(line)
    ranks[1].kill()
    assert ranks[0].ending() == f"end: dwdp rank 1 (process {ranks[1].pid}) ended during start-up."


def test_stopped_rank_ends_the_others_at_the_time_out(start):
    ranks = [start(r, 3, timeout_s=4, load_s=60 if r == 1 else 0) for r in range(3)]
    for rank in ranks:
        for line in ("open", "tried"):
            rank.hears(line)
    time.sleep(1)  # so that the rank has reported its place
    ranks[1].send_signal(signal.SIGSTOP)
    sentence = f"end: dwdp rank 1 got no further for 4 s (loading); {ADVICE}"
    assert [ranks[r].ending() for r in (0, 2)] == [sentence] * 2


def test_start_that_gets_further_may_take_longer_than_the_time_out(start):
    ranks = [start(0, timeout_s=2), start(1, timeout_s=2, num_layers=6, layer_s=1)]
    assert [rank.ending() for rank in ranks] == ["end: bound"] * 2


def test_groups_that_load_keep_the_store_longer_than_the_time_out(start):
    """Rank 0, which hosts the store, finishes long before the last rank."""
    slow = {"timeout_s": 2, "num_layers": 5, "layer_s": 1}
    placement = {"placement": [[0, 4]] * 2}
    first = [start(r, 4, 2, timeout_s=2, serve_s=60, manifest=placement) for r in range(2)]
    last = [start(r, 4, 2, manifest=placement, **slow) for r in (2, 3)]
    for rank in first:
        for line in ("open", "tried", "met", "end: bound"):
            rank.hears(line)
    assert [rank.ending() for rank in last] == ["end: bound"] * 2


def test_rank_that_hangs_is_named_within_the_time_out_of_its_last_beat(start):
    """Ranks that still load notice it at their next layer."""
    timeout_s = 3
    slow = {"timeout_s": timeout_s, "num_layers": 100, "layer_s": 0.2}
    ranks = [
        start(0, 3, **slow),
        start(1, 3, timeout_s=timeout_s, num_layers=2, layer_s=0.2, load_s=60),
        start(2, 3, timeout_s=timeout_s),
    ]
    for line in ("open", "tried", "layer 0", "layer 1"):
        ranks[1].hears(line)
    began = time.monotonic()
    sentence = f"end: dwdp rank 1 got no further for 3 s (loading: layer 1); {ADVICE}"
    assert [ranks[r].ending() for r in (0, 2)] == [sentence] * 2
    assert timeout_s - 0.5 < time.monotonic() - began < timeout_s + 2


def test_stopped_rank_is_named_though_it_was_waiting_for_another(start):
    ranks = [start(r, 3, timeout_s=3) for r in range(2)]
    ranks.append(start(2, 3, timeout_s=3, num_layers=100, layer_s=0.2))
    for line in ("open", "tried"):
        ranks[1].hears(line)
    time.sleep(1)
    ranks[1].send_signal(signal.SIGSTOP)
    sentence = "end: dwdp rank 1 got no further for 3 s (meeting its group: waiting for dwdp rank 2"
    assert [ranks[r].ending().startswith(sentence) for r in (0, 2)] == [True] * 2


def test_ranks_that_wait_for_each_other_end_at_the_time_out(start):
    """Ranks of different versions could wait for each other like this."""
    ranks = [start(0, timeout_s=4, gathers=["a"]), start(1, timeout_s=4, gathers=["b"])]
    endings = {rank.ending() for rank in ranks}
    assert len(endings) == 1
    sentence = endings.pop()
    assert sentence.startswith("end: No rank of the group got further for 4 s: ")
    assert "dwdp rank 0 is at 'loading: waiting for dwdp rank 1 to reach 'a''" in sentence
    assert "dwdp rank 1 is at 'loading: waiting for dwdp rank 0 to reach 'b''" in sentence


def test_rank_that_never_comes_is_named_by_those_that_met(start):
    ranks = [start(r, 3, timeout_s=2) for r in range(2)]
    sentence = f"end: dwdp rank 2 did not come to the rendezvous within 2 s; {ADVICE}"
    assert [rank.ending() for rank in ranks] == [sentence] * 2


def test_stopped_host_of_the_store_ends_the_others_at_the_time_out(start):
    ranks = [start(r, 3, timeout_s=4, load_s=60 if r == 0 else 0) for r in range(3)]
    for rank in ranks:
        for line in ("open", "tried"):
            rank.hears(line)
    ranks[0].send_signal(signal.SIGSTOP)
    process = f"dwdp rank 0 (process {ranks[0].pid})"
    sentence = f"end: {process}, which hosts the rendezvous, did not answer within 4 s."
    assert [ranks[r].ending() for r in (1, 2)] == [sentence] * 2


def test_rank_that_never_comes_ends_the_others_at_the_time_out(start):
    assert "rank 0 did not open the rendezvous" in start(1, timeout_s=2).ending()


def test_nothing_is_left_and_the_store_closes_once_all_have_finished(start):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        ranks = [start(r, serve_s=60, temporary_directory=folder) for r in range(2)]
        for rank in ranks:
            for line in ("open", "tried", "met", "end: bound", []):
                rank.hears(line)
        assert os.listdir(folder) == []
    for rank in ranks:
        links = [os.readlink(fd) for fd in Path(f"/proc/{rank.pid}/fd").iterdir()]
        assert not [link for link in links if "memfd" in link]
        assert listening(rank.pid) == []


def test_nothing_is_left_after_a_failure(start):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        manifests = [{}, {"dtype": "float16"}]
        ranks = [
            start(r, manifest=manifests[r], serve_s=60, temporary_directory=folder)
            for r in range(2)
        ]
        for rank in ranks:
            for line in ("open", "tried"):
                rank.hears(line)
            assert rank.next_line().startswith("end: dwdp ranks 0 and 1 differ in dtype")
            rank.hears([])
            assert listening(rank.pid) == []
        assert os.listdir(folder) == []


def test_first_rank_may_leave_the_process_before_others_have_finished_reading(start):
    ranks = [start(0, 3), start(1, 3, bind_s=0.5), start(2, 3, bind_s=1)]
    assert [rank.ending() for rank in ranks] == ["end: bound"] * 3


def test_store_listens_on_loopback_only_and_is_the_only_port(start, port):
    ranks = [start(0, load_s=60), start(1, load_s=60)]
    for rank in ranks:
        for line in ("open", "tried"):
            rank.hears(line)
    assert listening(ranks[0].pid) == [f"0100007F:{port:04X}"]
    assert listening(ranks[1].pid) == []


def test_group_of_one_opens_no_socket(port):
    job = {"rank": 0, "size": 2, "dwdp_size": 1, "port": port, "serve_s": 60}
    rank = RankProcess(job)
    for line in ("open", "tried", "met", "end: bound"):
        rank.hears(line)
    links = [os.readlink(fd) for fd in Path(f"/proc/{rank.pid}/fd").iterdir()]
    rank.kill()
    assert not [link for link in links if link.startswith("socket")]
